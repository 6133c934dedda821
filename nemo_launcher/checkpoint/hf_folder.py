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

from nemo_launcher.checkpoint import safetensors_file
from nemo_launcher.checkpoint.hf_architectures import DTYPES, config_problems
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, pointer_problem, shown, some_of
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import load_json, reading

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
SCALE = "_scale_inv"
"""The suffix of the tensor with a weight's scales, in block-wise fp8."""
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_OTHER_FORMATS = (
    (re.compile(r".*\.distcp"), "a distributed checkpoint", "save it with model.save_pretrained(folder) first"),
    (re.compile(r".*\.gguf"), "a GGUF file", "give the path of the .gguf file"),
    (re.compile(r"consolidated.*\.(pth|safetensors)"), "the maker's own format", "use the model's Hugging Face format"),
    (re.compile(r".*\.(h5|msgpack|onnx|ot)"), "another library's format", "download model.safetensors"),
    (re.compile(r".*\.(safetensors|bin|pt|pth)"), "files that transformers does not read", f"rename it to {SINGLE}"),
)


@dataclass(frozen=True, slots=True)
class HFFolder:
    """A folder with a supported configuration, tokenizer and weights."""

    path: Path
    """The folder."""
    files: dict[str, Path]
    """Its files by name."""
    config: dict[str, object]
    """The content of config.json."""
    tokenizer_config: dict[str, object]
    """The content of tokenizer_config.json; empty without it."""
    tensors: dict[str, StoredTensor]
    """The tensors of all safetensors files; empty if the weights are in `pickles`."""
    pickles: tuple[Path, ...]
    """pytorch_model.bin or its parts, in order."""


def read_folder(path: Path) -> HFFolder:
    """Return the content of a folder. Raises UserError with everything that prevents its conversion."""
    with reading(path):
        return _read(path, {entry.name: Path(entry.path) for entry in os.scandir(path)})


def _read(path: Path, names: Mapping[str, Path]) -> HFFolder:
    problems: list[Problem] = []
    config = _mapping(names, CONFIG, problems)
    if CONFIG not in names:
        problems.append(Problem(str(path), f"holds no {CONFIG}", f"give the path of the folder with {CONFIG}"))
    elif not problems:
        problems += settings_problems(config, names[CONFIG])
    if any(problem.what.startswith("architecture ") for problem in problems):
        raise UserError(problems)  # other architectures have other files
    tokenizer_config = _mapping(names, TOKENIZER_CONFIG, problems)
    problems += _tokenizer_problems(path, names)
    tensors: dict[str, StoredTensor] = {}
    pickles: tuple[Path, ...] = ()
    try:
        tensors, pickles = _weights(path, names)
        problems += _kind_problems(tensors, config)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return HFFolder(path, dict(names), dict(config), dict(tokenizer_config), tensors, pickles)


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


def settings_problems(config: Mapping[str, object], source: Path) -> list[Problem]:
    """Return what in a config.json prevents the conversion. source: its file."""
    return config_problems(config, str(source)) or _quantization_problems(config, source)


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


def _weights(path: Path, names: Mapping[str, Path]) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if INDEX in names:
        return _sharded(names, shards), ()
    if shards:
        what = f"holds {len(shards)} parts of the weights, but no {INDEX}"
        raise UserError(Problem(str(path), what, f"download {INDEX} too"))
    if SINGLE in names:
        return safetensors_file.read_header(names[SINGLE]), ()
    if PICKLE_INDEX in names or PICKLE in names:
        parts = sorted(set(_index(names, PICKLE_INDEX).values())) if PICKLE_INDEX in names else [PICKLE]
        _check_pickles([names[part] for part in parts])
        return {}, tuple(names[part] for part in parts)
    if "adapter_config.json" in names:
        fix = "merge it into its model (merge_and_unload of peft), save the model, and give the path of its folder"
        raise UserError(Problem(str(path), "holds a PEFT adapter, not a model", fix))
    for pattern, title, fix in _OTHER_FORMATS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            raise UserError(Problem(str(path), f"holds no {SINGLE}, but {title}: {some_of(found)}", fix))
    raise UserError(Problem(str(path), "holds no weights", f"add {SINGLE}, or its parts with {INDEX}, to the folder"))


def _check_pickles(paths: list[Path]) -> None:
    """Raise UserError for files of torch's older format, in which code and values are not separate."""
    problems = []
    for path in paths:
        problem = pointer_problem(path)
        with path.open("rb") as stream:
            if problem is None and stream.read(2) != b"PK":
                what = "is in the format of torch before 1.6, which is not supported, or damaged"
                fix = "load it with transformers and save it with save_pretrained, which writes safetensors"
                problem = Problem(str(path), what, fix)
        problems += [problem] if problem is not None else []
    if problems:
        raise UserError(problems)


def index_files(path: Path) -> dict[str, str]:
    """Return tensor -> file of an index. Raises UserError if it is not one."""
    problem = pointer_problem(path)
    if problem is not None:
        raise UserError(problem)
    value = load_json(path)
    files = value.get("weight_map") if isinstance(value, dict) else None
    if not (isinstance(files, dict) and files and all(isinstance(file, str) for file in files.values())):
        raise UserError(Problem(f"{path}: weight_map", "is not a mapping of tensors to files", "download it again"))
    return files


def _index(names: Mapping[str, Path], index: str) -> dict[str, str]:
    """Return tensor -> file of an index. Raises UserError for files that are missing or not in this folder."""
    files = index_files(names[index])
    absent = set(files.values()) - names.keys()
    if absent:
        what = f"{len(absent)} of {len(set(files.values()))} files in it are absent: {some_of(absent)}"
        raise UserError(Problem(str(names[index]), what, "download them into the folder"))
    return files


def _sharded(names: Mapping[str, Path], shards: list[str]) -> dict[str, StoredTensor]:
    """Return the tensors of all parts. Raises UserError if index and parts contradict each other."""
    index, source = _index(names, INDEX), str(names[INDEX])
    files = sorted(set(index.values()))
    extra = (set(shards) | ({SINGLE} & names.keys())) - set(files)
    problems = []
    if extra:
        fix = "remove files that do not belong to the model, or download the index again"
        problems.append(Problem(source, f"does not list {some_of(extra)}", fix))
    tensors: dict[str, StoredTensor] = {}
    twice: list[str] = []
    for file in files:
        try:
            found = safetensors_file.read_header(names[file])
        except UserError as error:
            problems += error.problems
            continue
        twice += [name for name in found if name in tensors]
        tensors |= found
    if problems:
        raise UserError(problems)
    again = "download the index and the parts again"
    wrong = {name for name, file in index.items() if name not in tensors or tensors[name].path.name != file}
    for found_wrong, what in (
        (twice, "are in several parts"),
        (wrong, "are not in the part that the index lists"),
        (tensors.keys() - index.keys(), "are in a part, but not in the index"),
    ):
        if found_wrong:
            problems.append(Problem(source, f"{len(found_wrong)} tensors {what}: {some_of(found_wrong)}", again))
    if problems:
        raise UserError(problems)
    return tensors
