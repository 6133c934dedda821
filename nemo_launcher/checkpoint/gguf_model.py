# SPDX-License-Identifier: Apache-2.0
"""The model in a GGUF file, as a Hugging Face configuration and tensor names. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.checkpoint.gguf_architectures import GGUF_ARCHITECTURES, Form, GGUFArchitecture
from nemo_launcher.checkpoint.gguf_file import GGUFFile, GGUFKeys, read_gguf
from nemo_launcher.checkpoint.gguf_tokens import SPECIAL, token_problems
from nemo_launcher.checkpoint.hf_architectures import config_problems
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, shown, some_of
from nemo_launcher.errors import Problem, UserError

_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_NEUTRAL: tuple[object, ...] = (0, 0.0, False, None)
"""Values at which an unread key has no effect (expert_count 0 ...)."""


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """A GGUF file as a Hugging Face model."""

    path: Path
    """The file."""
    config: dict[str, object]
    """The content of an equivalent config.json."""
    tensors: dict[str, StoredTensor]
    """The tensors by Hugging Face's names."""
    forms: dict[str, Form]
    """How the tensors were changed, by the same names."""
    metadata: dict[str, object]
    """The file's own metadata by key."""


def read_model(path: Path) -> GGUFModel:
    """Return the model in a GGUF file. Raises UserError with everything that prevents its conversion."""
    file = read_gguf(path)
    metadata, source = file.metadata, str(path)
    keys = GGUFKeys(file, _checked_kind(file))
    architecture = GGUF_ARCHITECTURES[keys.kind]
    problems = _key_problems(keys, architecture)
    tensors, forms = _renamed(file.tensors, architecture, problems, source)
    config = _config(keys, architecture, problems)
    problems += config_problems(config, source)
    problems += token_problems(metadata, config.get("vocab_size"), source, keys.kind)
    if problems:
        raise UserError(problems)
    return GGUFModel(path, config, tensors, forms, metadata)


def _key_problems(keys: GGUFKeys, architecture: GGUFArchitecture) -> list[Problem]:
    """Return the problems of keys that are unknown, absent or not finite."""
    problems = [
        keys.wrong(key, f"{str(keys.get(key))[:60]!r} is not supported")
        for key in keys
        if key not in architecture.known and keys.get(key) not in _NEUTRAL
    ]
    for key in architecture.required:
        value = keys.get(key)
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            problems.append(keys.wrong(key, "is absent or not finite"))
    causal = keys.get("attention.causal", True)
    if causal is not True:
        problems.append(keys.wrong("attention.causal", f"{causal!r} is not supported: tokens would see later ones"))
    return problems


def _checked_kind(file: GGUFFile) -> str:
    """Return the architecture's name. Raises UserError if the file is not a complete language model."""
    metadata, source = file.metadata, str(file.path)
    parts = metadata.get("split.count", 1)
    if parts != 1:
        what = f"is part {_plus_one(metadata.get('split.no'))} of {parts}"
        merged = re.sub(r"-\d{5}-of-\d{5}", "", file.path.stem) + "-merged.gguf"
        fix = f"merge the parts: llama-gguf-split --merge {file.path.name} {merged} (give the first part)"
        raise UserError(Problem(source, what, fix))
    form = metadata.get("general.type", "model")
    if form != "model":
        raise UserError(
            Problem(source, f"its type is {str(form)[:40]!r}, not a model", "give the path of the model's file")
        )
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in GGUF_ARCHITECTURES:
        what = f"architecture {shown(str(kind))} is not supported" if kind else "names no architecture"
        raise UserError(Problem(source, what, f"supported as GGUF: {', '.join(GGUF_ARCHITECTURES)}"))
    if not file.tensors:
        raise UserError(Problem(source, "holds no weights", "give the path of the model's file, not of its vocabulary"))
    return kind


def _plus_one(number: object) -> int | str:
    return number + 1 if isinstance(number, int) else "?"


def _renamed(
    tensors: Mapping[str, StoredTensor], architecture: GGUFArchitecture, problems: list[Problem], source: str
) -> tuple[dict[str, StoredTensor], dict[str, Form]]:
    """Return the tensors, and how they were changed, by Hugging Face's names."""
    renamed: dict[str, StoredTensor] = {}
    forms: dict[str, Form] = {}
    strange = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        place = architecture.tensors.get(match[2]) if match else None
        if name in architecture.factors:
            continue
        if match is None or place is None or ("{}" in place.name) != (match[1] is not None):
            strange.append(name)
        else:
            theirs = f"{place.name.format(match[1])}.{match[3]}"
            renamed[theirs], forms[theirs] = tensor, place.form
    if strange:
        what = f"{len(strange)} tensors do not exist in the architecture: {some_of(strange)}"
        problems.append(Problem(source, what, "use another file of the model"))
    return renamed, forms


def _config(keys: GGUFKeys, architecture: GGUFArchitecture, problems: list[Problem]) -> dict[str, object]:
    """Return the content of config.json; adds to `problems`."""
    file = keys.file
    embedding = file.tensors.get("token_embd.weight")
    config: dict[str, object] = {
        "architectures": [architecture.name],
        "vocab_size": embedding.shape[0] if embedding is not None else None,
        "dtype": "float32",
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    for token in ("bos", "eos", "pad"):  # also where absent, since Phi-3's configuration has other defaults
        config[f"{token}_token_id"] = file.metadata.get(f"tokenizer.ggml.{SPECIAL[token]}")
    for key, theirs in architecture.keys.items():
        value = keys.get(key, architecture.defaults.get(key))
        if value is not None:
            config[theirs] = value
    config |= {theirs: True for theirs, tensor in architecture.flags.items() if tensor in file.tensors}
    if architecture.rope is not None:
        _add_attention(config, keys, architecture, problems)
    return config


def _add_attention(
    config: dict[str, object], keys: GGUFKeys, architecture: GGUFArchitecture, problems: list[Problem]
) -> None:
    """Add the keys of heads, rotary positions and windows, in place."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    config.setdefault("num_key_value_heads", heads)
    head_dim: object = hidden // heads if type(heads) is int and type(hidden) is int and heads > 0 else None
    if "head_dim" in ARCHITECTURES[architecture.name].known:
        head_dim = keys.get("attention.key_length") or keys.get("rope.dimension_count") or head_dim
        config["head_dim"] = head_dim
    for key in ("attention.key_length", "attention.value_length"):
        if keys.get(key) not in (None, head_dim):
            problems.append(keys.wrong(key, f"{keys.get(key)!r} is not the size of a head, {head_dim!r}"))
    if type(head_dim) is not int or head_dim <= 0:
        return
    try:
        config["rope_parameters"] = architecture.rope(keys, head_dim) if architecture.rope else None
        config |= architecture.attention(keys, head_dim) if architecture.attention else {}
    except UserError as error:
        problems += error.problems
