# SPDX-License-Identifier: Apache-2.0
"""Checks of a Hugging Face folder before its weights are read. Imports no torch, for use in the launcher."""

from __future__ import annotations

import codecs
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from nemo_launcher.checkpoint.architectures.multimodal import MultiModal
from nemo_launcher.checkpoint.hf_architectures import DTYPES, config_problems
from nemo_launcher.checkpoint.hf_weights import stored_weights
from nemo_launcher.checkpoint.language_model import (
    TIED,
    asked_problem,
    is_tied,
    language_config,
    language_names,
    language_problems,
    multi_modal,
)
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, pointer_problem, shown, some_of
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import load_json, reading

CONFIG = "config.json"
TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
PROCESSOR_TEMPLATE = "chat_template.json"
"""The chat template of a multi-modal model's processor, which transformers' tokenizer does not read."""
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
SCALE = "_scale_inv"
"""The suffix of the tensor with a weight's scales, in block-wise fp8."""


@dataclass(frozen=True, slots=True)
class HFFolder:
    """A folder with a supported configuration, tokenizer and weights."""

    path: Path
    """The folder."""
    files: dict[str, Path]
    """Its files by name."""
    config: dict[str, object]
    """The content of config.json, or what it says about the language model of `whole`."""
    tokenizer_config: dict[str, object]
    """The content of tokenizer_config.json; empty without it."""
    tensors: dict[str, StoredTensor]
    """The tensors of all safetensors files; empty if the weights are in `pickles`."""
    pickles: tuple[Path, ...]
    """pytorch_model.bin or its parts, in order."""
    whole: MultiModal | None
    """The multi-modal model of whose tensors `tensors` has those of the language model, under its names; else None."""
    left_out: dict[str, StoredTensor]
    """The other tensors of `whole` in safetensors files."""


def read_folder(path: Path, *, language_model: bool = False) -> HFFolder:
    """Return the content of a folder. Raises UserError with everything that prevents its conversion.

    language_model: whether the language model of a multi-modal model is asked for.
    """
    with reading(path):
        return _read(path, {entry.name: Path(entry.path) for entry in os.scandir(path)}, language_model)


def _read(path: Path, names: Mapping[str, Path], language_model: bool) -> HFFolder:
    problems: list[Problem] = []
    config = _mapping(names, CONFIG, problems)
    if CONFIG not in names:
        problems.append(Problem(str(path), f"holds no {CONFIG}", f"give the path of the folder with {CONFIG}"))
    elif not problems:
        problems += settings_problems(config, names[CONFIG], language_model=language_model)
    if any(problem.what.startswith("architecture ") for problem in problems):
        raise UserError(problems)  # other architectures have other files
    tokenizer_config = _mapping(names, TOKENIZER_CONFIG, problems)
    problems += _tokenizer_problems(path, names)
    tensors: dict[str, StoredTensor] = {}
    left_out: dict[str, StoredTensor] = {}
    pickles: tuple[Path, ...] = ()
    whole = multi_modal(config)
    try:
        tensors, pickles = stored_weights(path, names)
        if whole is not None:
            config, tensors, left_out = _language_model(path, config, whole, tensors)
        problems += _kind_problems(tensors, config)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))  # a file may have one problem for two readers
    return HFFolder(path, dict(names), dict(config), dict(tokenizer_config), tensors, pickles, whole, left_out)


def _language_model(
    path: Path, config: Mapping[str, object], whole: MultiModal, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, object], dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Return the configuration and tensors of a language model, and the other tensors; stored: {} for pickles."""
    names = language_names(stored, whole, path) if stored else {}
    left_out = {name: tensor for name, tensor in stored.items() if name not in names}
    has_head = not stored or any(name.startswith("lm_head.") for name in names.values())  # pickles have tied ones too
    own, _ = language_config(config, whole)
    tied = {TIED: is_tied(config, whole, has_head=has_head)}
    return own | tied, {name: stored[theirs] for theirs, name in names.items()}, left_out


def _mapping(names: Mapping[str, Path], name: str, problems: list[Problem]) -> dict[str, object]:
    """Return a JSON file's mapping, or {} if it is missing or malformed, which adds to `problems`."""
    if name not in names:
        return {}
    try:
        with reading(names[name]):
            problem = pointer_problem(names[name])
            if problem is not None:
                raise UserError(problem)
            value = load_json(names[name])
    except UserError as error:
        problems += error.problems
        return {}
    if isinstance(value, dict):
        return value
    problems.append(Problem(str(names[name]), f"is {json_kind(value)}, not an object", "copy it again"))
    return {}


def settings_problems(config: Mapping[str, object], source: Path, *, language_model: bool) -> list[Problem]:
    """Return what in a config.json prevents the conversion. source: its file; language_model: see `read_folder`."""
    whole = multi_modal(config)
    asked = asked_problem(source, whole=whole, asked=language_model)
    if whole is not None:
        problems = language_problems(config, whole, str(source))
        config, _ = language_config(config, whole)
    else:
        problems = config_problems(config, str(source))
        asked = None if problems else asked
    problems = problems or _quantization_problems(config, source)
    return problems if asked is None else [asked, *problems]


def _quantization_problems(config: Mapping[str, object], source: Path) -> list[Problem]:
    """Return a Problem for any quantization except block-wise fp8, whose values can be computed exactly."""
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return []
    if not isinstance(section, Mapping):
        return [Problem(f"{source}: quantization_config", "is not a mapping", "copy config.json again")]
    method = shown(str(section.get("quant_method", "an unnamed method")))
    if method == "fp8" and _are_sizes(section.get("weight_block_size")):
        return []
    bits = next((f" ({n} bit)" for n in (4, 8) if section.get(f"load_in_{n}bit")), "")
    fix = "use the model's folder in float32, bfloat16 or float16; the only supported quantization is block-wise fp8"
    return [Problem(f"{source}: quantization_config", f"the weights are quantized by {method}{bits}", fix)]


def scale_block(config: Mapping[str, object]) -> tuple[int, int]:
    """Return the rows and columns of the blocks of fp8 weights that share a scale."""
    section = config.get("quantization_config")
    sizes = section.get("weight_block_size") if isinstance(section, Mapping) else None
    assert _are_sizes(sizes)  # checked by _quantization_problems
    return sizes[0], sizes[1]


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size > 0 for size in value)


def _kind_problems(tensors: Mapping[str, StoredTensor], config: Mapping[str, object]) -> list[Problem]:
    """Return problems for tensors with unsupported types; block-wise fp8 weights need a tensor of scales."""
    wrong: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        scaled = tensor.kind == "F8_E4M3" and f"{name}{SCALE}" in tensors and bool(config.get("quantization_config"))
        if tensor.kind not in DTYPES.values() and not scaled and not _is_buffer(name):
            wrong.setdefault(tensor.kind, []).append(name)
    fix = "use the model's folder in float32, bfloat16 or float16"
    return [
        Problem(str(tensors[names[0]].path), f"{len(names)} tensors hold {kind}: {some_of(names)}", fix)
        for kind, names in wrong.items()
    ]


def _is_buffer(name: str) -> bool:
    return HARMLESS.fullmatch(name) is not None


HARMLESS = re.compile(
    r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)|(.*\.)?h\.\d+\.attn\.(bias|masked_bias)"
    r"|(.*\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
"""Stored tensors that can be ignored: tables and masks derived from the configuration, and one that T5 never uses."""


def _tokenizer_problems(path: Path, names: Mapping[str, Path]) -> list[Problem]:
    known = [name for name in (TOKENIZER_JSON, *SENTENCEPIECE, "vocab.json", "merges.txt") if name in names]
    settings = [name for name in (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json") if name in names]
    problems = []
    for name in (*known, *settings):
        with reading(names[name]):
            problem = pointer_problem(names[name])
            problem = problem or _mark_problem(names[name])
        problems += [problem] if problem is not None else []
    if problems or TOKENIZER_JSON in known or set(known) & set(SENTENCEPIECE) or len(known) == 2:
        return problems
    tekken = " (tekken.json is not read)" if "tekken.json" in names else ""
    fix = "add the model's tokenizer.json or tokenizer.model to the folder"
    return [Problem(str(path), f"holds no tokenizer{tekken}", fix)]


def _mark_problem(path: Path) -> Problem | None:
    """Return a Problem for a JSON file with a byte order mark, which transformers cannot read, or None."""
    with path.open("rb") as stream:
        marked = path.suffix == ".json" and stream.read(3) == codecs.BOM_UTF8
    fix = f"remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' {shlex.quote(str(path))}"
    return Problem(str(path), "begins with a byte order mark", fix) if marked else None
