# SPDX-License-Identifier: Apache-2.0
"""Files of weights in a Hugging Face folder: which there are, and the tensors in their headers. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.checkpoint import safetensors_file
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, pointer_problem, some_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import load_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_OTHER_FORMATS = (
    (re.compile(r".*\.distcp"), "a distributed checkpoint", "save it with model.save_pretrained(folder) first"),
    (re.compile(r".*\.gguf"), "a GGUF file", "give the path of the .gguf file"),
    (re.compile(r"consolidated.*\.(pth|safetensors)"), "the maker's own format", "use the model's Hugging Face format"),
    (re.compile(r".*\.(h5|msgpack|onnx|ot)"), "another library's format", "download model.safetensors"),
    (re.compile(r".*\.(safetensors|bin|pt|pth)"), "files that transformers does not read", f"rename it to {SINGLE}"),
)


def stored_weights(path: Path, names: Mapping[str, Path]) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Return the tensors of a folder's safetensors files, or else pytorch_model.bin or its parts.

    names: the folder's files by name. Raises UserError if there are none, or if they contradict their index.
    """
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
