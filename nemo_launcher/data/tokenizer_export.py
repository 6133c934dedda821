# SPDX-License-Identifier: Apache-2.0
"""A base's tokenizer as files for transformers, which must give the same ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.tokenizer_folder import check_folder
from nemo_launcher.data.tokenizer_kinds import folder_inside, gpt2_members, is_gpt2, sentencepiece_member
from nemo_launcher.data.tokenizers import FIRST_SENTINEL, HuggingFaceTokenizer, Tokenizer, load_tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, load_json, quiet_panics, reading
from nemo_launcher.files.temporary import temporary_folder
from nemo_launcher.files.values import Section, below

_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja"),
)
"""The files of a tokenizer; others in its folder are not copied."""
_SETTINGS = "tokenizer_config.json"
_SPECIAL = ("bos", "eos", "pad", "unk")
_TEXTS = (
    "The museum opens at 9:30 on 27 November 2026.",
    "  two spaces,\ttab\nand a new line\n\n",
    "naïve café — Ærøskøbing, 東京, здравствуйте 🙂",
    f"question: who? {FIRST_SENTINEL} 12345 don't",
    "def f(x):\n    return x ** 2  # comment",
)


def write_tokenizer(base: Path, folder: Path) -> str | None:
    """Write the tokenizer of a base into a Hugging Face folder; return why there is none, or None.

    Its files are kept only if transformers reads them and gives the same ids for several texts.
    """
    with Archive(base) as archive:
        section = below(archive.config(), "tokenizer")
        wanted = load_tokenizer(archive)
        _write_files(archive, section, folder)
        _name_absent_tokens(folder, wanted)
    written = [folder / name for name in _NAMES if (folder / name).exists()]
    reason = _difference(folder, wanted) if written else "its files are in no form that transformers reads"
    if reason is not None:
        for path in written:
            path.unlink()
    return reason


def _write_files(archive: Archive, section: Section, folder: Path) -> None:
    if is_gpt2(section):
        for key, name in (("vocab_file", "vocab.json"), ("merge_file", "merges.txt")):
            (folder / name).write_bytes(archive.read(gpt2_members(section)[key], MAX_TEXT_BYTES))
        _write_settings(folder, {"tokenizer_class": "GPT2Tokenizer"})
    elif section.get("library") == "sentencepiece":
        is_t5 = section.get("num_sentinel_tokens") is not None
        name = "spiece.model" if is_t5 else "tokenizer.model"
        (folder / name).write_bytes(archive.read(sentencepiece_member(section), MAX_TEXT_BYTES))
        extra = {"extra_ids": section.get("num_sentinel_tokens")} if is_t5 else {}
        _write_settings(folder, {"tokenizer_class": "T5Tokenizer" if is_t5 else "LlamaTokenizer", **extra})
    else:
        with temporary_folder(archive.folder_size(folder_inside(section))) as copy:
            inside = archive.extract_folder(folder_inside(section), copy)
            source = copy if inside else Path(str(section.get("type")))
            for name in _NAMES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)


def _name_absent_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    """Name the special tokens that a tokenizer lacks: transformers would add those of the model's class."""
    path = folder / _SETTINGS
    settings = load_json(path) if path.exists() else {}
    lacking = [name for name in _SPECIAL if getattr(tokenizer, f"{name}_id") is None]
    if isinstance(settings, dict) and lacking:
        _write_settings(folder, {f"{name}_token": None for name in lacking} | settings)


def _write_settings(folder: Path, settings: Section) -> None:
    (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _difference(folder: Path, wanted: Tokenizer) -> str | None:
    """Return what differs between the tokenizer that transformers reads and that of the base, or None."""
    try:
        with reading(folder), quiet_panics():
            check_folder(folder, str(folder))
            found = HuggingFaceTokenizer(folder)
    except UserError as error:
        return f"transformers cannot read its files ({error.problems[0].what})"
    special = [name for name in _SPECIAL if getattr(found, f"{name}_id") != getattr(wanted, f"{name}_id")]
    if special:
        return f"transformers gives other ids for {', '.join(special)}"
    other = next((text for text in _TEXTS if found.text_to_ids(text) != wanted.text_to_ids(text)), None)
    return None if other is None else f"transformers gives other ids for {other[:40]!r}"
