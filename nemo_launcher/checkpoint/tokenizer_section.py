# SPDX-License-Identifier: Apache-2.0
"""The `tokenizer` section of a base's configuration: its files, and whether they are in the archive.

Source of the keys: NeMo 1.20, MegatronBaseModel._build_tokenizer. Imports no tokenizer library, for use in the
launcher.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER, Archive
from nemo_launcher.errors import Problem
from nemo_launcher.files.values import below

_GPT2_TYPES = ("GPT2BPETokenizer", "megatron-gpt-345m", "gpt2")
ARTIFACT = "nemo:"  # prefix of names of archive members


def absent_files(section: Mapping[str, object], names: Set[str], source: str) -> Problem | None:
    """Return why data.tokenizers.load_tokenizer cannot find a tokenizer's files, or None.

    section: `tokenizer` of the base's configuration; names: of the files in its archive; source: the archive's name.
    """
    library, kind = section.get("library"), str(section.get("type") or "")
    if is_gpt2(section):
        wanted = [str(section.get(key) or key).removeprefix(ARTIFACT) for key in ("vocab_file", "merge_file")]
    elif library == "sentencepiece" and is_artifact(section.get("model")):
        wanted = [str(section["model"]).removeprefix(ARTIFACT)]
    elif library == "huggingface":
        inside = any(name.startswith(f"{folder_inside(section)}/") for name in names)
        outside = Path(kind).is_absolute() and Path(kind).is_dir()
        return None if inside or outside else _absent(source, library, kind)
    else:
        return _absent(source, library, kind)
    absent = next((name for name in wanted if name not in names), None)
    what, fix = "is absent from the archive", "copy or convert it again"
    return Problem(f"{source}: {absent}", what, fix) if absent is not None else None


def is_inside(archive: Archive) -> bool:
    """Return whether the archive holds files of its tokenizer."""
    section = below(archive.config(), "tokenizer")
    artifacts = [str(value).removeprefix(ARTIFACT) for value in section.values() if is_artifact(value)]
    folders = tuple(f"{name}/" for name in (TOKENIZER_FOLDER, *artifacts))
    return any(name in artifacts or name.startswith(folders) for name in archive.names)


def is_artifact(value: object) -> bool:
    return str(value or "").startswith(ARTIFACT)


def is_gpt2(section: Mapping[str, object]) -> bool:
    named = section.get("library") in ("megatron", "huggingface") and str(section.get("type") or "") in _GPT2_TYPES
    return named and is_artifact(section.get("vocab_file"))


def folder_inside(section: Mapping[str, object]) -> str:
    """Return the folder of a Hugging Face tokenizer in the archive."""
    kind = str(section.get("type") or "")
    return kind.removeprefix(ARTIFACT) if is_artifact(kind) else TOKENIZER_FOLDER


def _absent(source: str, library: object, kind: str) -> Problem:
    """Return the Problem for missing tokenizer files, with advice to add them to the archive."""
    what = f"the archive carries no tokenizer (library {library!r}" + (f", type {kind!r})" if kind else ")")
    fix = "convert the model again with stages=[conversion_hf2nemo], which includes the tokenizer"
    if library == "huggingface":
        fix += f"; or unpack the archive, save the tokenizer's files in its folder {TOKENIZER_FOLDER}/, and use the "
        fix += "unpacked folder as the base"
    return Problem(f"{source}: tokenizer", what, fix)
