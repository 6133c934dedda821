# SPDX-License-Identifier: Apache-2.0
"""Checks of models that can be converted, and the command that converts them. Imports no torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_launcher import places
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.checkpoint.gguf_model import read_model
from nemo_launcher.checkpoint.hf_architectures import CONVERTERS
from nemo_launcher.checkpoint.hf_folder import CONFIG, read_folder
from nemo_launcher.checkpoint.language_model import OPTION, asked_problem, multi_modal
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import load_json, reading

KEY = "model.hf_model_path"
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack)(\.index\.json)?")


def check_source(source: Path, *, language_model: bool = False) -> None:
    """Raise UserError with everything that prevents the conversion of a Hugging Face folder or a .gguf file.

    language_model: whether the language model of a multi-modal model is asked for. Weights are not read. Used at
    launch and again in the job.
    """
    if not source.exists():
        raise UserError(Problem(KEY, f"no such file or folder: {source}", "check the path"))
    if source.is_dir():
        if not (source / CONFIG).exists():
            inside = sorted(source.glob("*.gguf"))
            fix = f"give the path of the file: {inside[0]}" if inside else f"give the path of the folder with {CONFIG}"
            raise UserError(Problem(KEY, f"{source} holds no {CONFIG}", fix))
        read_folder(source, language_model=language_model)
        return
    if not source.is_file():
        raise UserError(
            Problem(KEY, f"{source} is a device or pipe", "give the path of a .gguf file or a Hugging Face folder")
        )
    with reading(source), source.open("rb") as stream:
        is_gguf = source.suffix == ".gguf" or stream.read(4) == b"GGUF"
    if not is_gguf:
        beside = (source.parent / CONFIG).is_file()
        fix = (
            f"give the path of its folder: {source.parent}"
            if beside
            else "give the path of a .gguf file or a Hugging Face folder"
        )
        raise UserError(Problem(KEY, f"{source} is not a .gguf file", fix))
    asked = asked_problem(source, whole=None, asked=language_model)
    if asked is not None:
        raise UserError(asked)
    read_model(source)


def source_problem(path: Path) -> Problem | None:
    """Return a Problem for a Hugging Face model or GGUF file given as a base, or None."""
    source, title, config = path, "", {}
    if path.is_dir():
        if (path / CONFIG).is_file() and not (path / "model_config.yaml").exists():
            title, config = "is a Hugging Face folder", _config_of(path)
    elif path.is_file():
        with path.open("rb") as stream:
            beginning = stream.read(4)
        if beginning == b"GGUF" or path.suffix == ".gguf":
            title = "is a GGUF file"
        elif _WEIGHTS.fullmatch(path.name) and (path.parent / CONFIG).is_file():
            source, title = path.parent, "is a file of a Hugging Face model"
            config = _config_of(source)
        elif path.suffix == ".safetensors":
            fix = "use a .nemo file; a Hugging Face folder (config.json, tokenizer, weights) can be converted to one"
            return Problem(str(path), "is a safetensors file, not a .nemo base model", fix)
    if not title:
        return None
    converter = CONVERTERS.get(_kind_of(config) or "llama", "hf")
    name = re.sub(r"[^A-Za-z0-9_]+", "_", source.absolute().name.removesuffix(".gguf")).strip("_").lower() or "model"
    overrides = [
        "stages=[conversion_hf2nemo]",
        f"conversion_hf2nemo={converter}",
        f"conversion_hf2nemo.model.hf_model_path={_hydra(str(source.absolute()))}",
        f"conversion_hf2nemo.run.model_train_name={name}",
    ]
    overrides += [] if multi_modal(config) is None else [OPTION]
    fix = f"convert it first: {places.LAUNCH} {' '.join(map(shlex.quote, overrides))}"
    return Problem(str(path), f"{title}, not a .nemo base model", fix)


def _config_of(folder: Path) -> dict[str, object]:
    try:
        config = load_json(folder / CONFIG)
    except UserError:
        return {}
    return config if isinstance(config, dict) else {}


def _kind_of(config: Mapping[str, Any]) -> str | None:
    try:
        return ARCHITECTURES[config["architectures"][0]].kind
    except (LookupError, TypeError):
        return None


def _hydra(value: str) -> str:
    """Return a text quoted for Hydra's command line."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return value
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", value)
    trailing = re.search(r"\\*$", escaped)
    return f"'{escaped}{trailing[0] if trailing else ''}'"
