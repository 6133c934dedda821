# SPDX-License-Identifier: Apache-2.0
"""The kinds of tokenizers that a base's archive may carry: how each is recognised, which files it needs, who reads it.

Source of the keys: NeMo 1.20, MegatronBaseModel._build_tokenizer. Imports no tokenizer library, for use in the
launcher.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER, Archive
from nemo_launcher.errors import Problem
from nemo_launcher.files.values import Section, below

_GPT2_TYPES = ("GPT2BPETokenizer", "megatron-gpt-345m", "gpt2")
ARTIFACT = "nemo:"  # prefix of names of archive members


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerKind:
    """A kind of tokenizer."""

    matches: Callable[[Section], bool]
    """Whether a `tokenizer` section names one; the first kind that matches counts."""
    absent: Callable[[Section, Set[str], str], Problem | None]
    """What is missing of its files, from the section, the names of the archive's members and the archive's name."""
    reader: str
    """`module:function(archive, section) -> Tokenizer`; what it raises for damaged files is told as the archive's."""


def kind_of(section: Section) -> TokenizerKind | None:
    """Return the kind of tokenizer that a section names; None where it names none that an archive can carry."""
    return next((kind for kind in KINDS if kind.matches(section)), None)


def absent_files(section: Section, names: Set[str], source: str) -> Problem | None:
    """Return why data.tokenizers.load_tokenizer cannot find a tokenizer's files, or None.

    section: `tokenizer` of the base's configuration; names: of the files in its archive; source: the archive's name.
    """
    kind = kind_of(section)
    return _no_tokenizer(section, source) if kind is None else kind.absent(section, names, source)


def is_inside(archive: Archive) -> bool:
    """Return whether the archive holds files of its tokenizer."""
    section = below(archive.config(), "tokenizer")
    artifacts = [str(value).removeprefix(ARTIFACT) for value in section.values() if is_artifact(value)]
    folders = tuple(f"{name}/" for name in (TOKENIZER_FOLDER, *artifacts))
    return any(name in artifacts or name.startswith(folders) for name in archive.names)


def is_artifact(value: object) -> bool:
    return str(value or "").startswith(ARTIFACT)


def is_gpt2(section: Section) -> bool:
    named = section.get("library") in ("megatron", "huggingface") and str(section.get("type") or "") in _GPT2_TYPES
    return named and is_artifact(section.get("vocab_file"))


def gpt2_members(section: Section) -> dict[str, str]:
    """The members of the archive with GPT-2's two files, by the keys that name them."""
    return {key: str(section.get(key) or key).removeprefix(ARTIFACT) for key in ("vocab_file", "merge_file")}


def sentencepiece_member(section: Section) -> str:
    """The member of the archive with a SentencePiece model."""
    return str(section["model"]).removeprefix(ARTIFACT)


def folder_inside(section: Section) -> str:
    """Return the folder of a Hugging Face tokenizer in the archive."""
    kind = str(section.get("type") or "")
    return kind.removeprefix(ARTIFACT) if is_artifact(kind) else TOKENIZER_FOLDER


def _absent_folder(section: Section, names: Set[str], source: str) -> Problem | None:
    """A Hugging Face folder lies in the archive, or at the absolute path that `type` names."""
    inside = any(name.startswith(f"{folder_inside(section)}/") for name in names)
    outside = Path(str(section.get("type") or ""))
    return None if inside or (outside.is_absolute() and outside.is_dir()) else _no_tokenizer(section, source)


def _absent_member(wanted: list[str], names: Set[str], source: str) -> Problem | None:
    absent = next((name for name in wanted if name not in names), None)
    what, fix = "is absent from the archive", "copy or convert it again"
    return Problem(f"{source}: {absent}", what, fix) if absent is not None else None


def _no_tokenizer(section: Section, source: str) -> Problem:
    """Return the Problem for missing tokenizer files, with advice to add them to the archive."""
    library, kind = section.get("library"), str(section.get("type") or "")
    what = f"the archive carries no tokenizer (library {library!r}" + (f", type {kind!r})" if kind else ")")
    fix = "convert the model again with stages=[conversion_hf2nemo], which includes the tokenizer"
    if library == "huggingface":
        fix += "; or unpack the archive, save the tokenizer's files in its folder "
        fix += f"{folder_inside(section)}/, and use the unpacked folder as the base"
    return Problem(f"{source}: tokenizer", what, fix)


KINDS = (
    TokenizerKind(
        matches=is_gpt2,
        absent=lambda section, names, source: _absent_member(list(gpt2_members(section).values()), names, source),
        reader="nemo_launcher.data.tokenizers:read_gpt2",
    ),
    TokenizerKind(
        matches=lambda section: section.get("library") == "sentencepiece" and is_artifact(section.get("model")),
        absent=lambda section, names, source: _absent_member([sentencepiece_member(section)], names, source),
        reader="nemo_launcher.data.tokenizers:read_sentencepiece",
    ),
    TokenizerKind(
        matches=lambda section: section.get("library") == "huggingface",
        absent=_absent_folder,
        reader="nemo_launcher.data.tokenizers:read_hugging_face",
    ),
)
