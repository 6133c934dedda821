# SPDX-License-Identifier: Apache-2.0
"""The licence that a model to be converted names: kept in the base for the model cards of what is made from it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from nemo_launcher.checkpoint.gguf_model import GGUFModel
from nemo_launcher.checkpoint.hf_folder import HFFolder
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import decode, read_bytes
from nemo_launcher.files.foreign_yaml import parse_yaml

_CARD = "README.md"
_KEYS = {"license": "id", "license_name": "name", "license_link": "link"}
"""The keys of Hugging Face's model cards, and of GGUF behind `general.`, and ours."""
_METADATA = re.compile(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying)(\.(txt|md))?", re.IGNORECASE)
_MAX_BYTES, _LONGEST = 4 * 2**20, 200


def licence_of(origin: HFFolder | GGUFModel) -> dict[str, str]:
    """Return the licence that a model's own files name: `id`, `name`, `link` and `source`, the file; {} if none does.

    A folder's README.md has it in its metadata; otherwise the first line of its licence file is the name. Files that
    cannot be read name nothing, because weights are converted whatever the text beside them.
    """
    if isinstance(origin, GGUFModel):
        found = _named({key.removeprefix("general."): value for key, value in _dashed(origin.metadata)})
        return found and found | {"source": origin.path.name}
    card = origin.files.get(_CARD)
    if card is not None:
        with contextlib.suppress(UserError, OSError):
            metadata = _METADATA.match(_text(card).replace("\r\n", "\n"))
            values = parse_yaml(metadata[1], str(card)) if metadata else None
            if isinstance(values, dict) and (found := _named(values)):
                return found | {"source": _CARD}
    for name in sorted(name for name in origin.files if _LICENCE_FILE.fullmatch(name)):
        with contextlib.suppress(UserError, OSError):
            lines = (_one_line(line).lstrip("# ") for line in _text(origin.files[name]).splitlines())
            first = next((line for line in lines if line), None)
            if first is not None:
                return {"name": first, "source": name}
    return {}


def _dashed(metadata: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield GGUF's metadata with the keys of a model card: general.license.name is license_name there."""
    for key, value in metadata.items():
        yield key.replace("license.", "license_"), value


def _named(values: Mapping[str, object]) -> dict[str, str]:
    """Return what a model card's metadata names; lists, which the hub allows, are joined."""
    found: dict[str, str] = {}
    for theirs, ours in _KEYS.items():
        value = values.get(theirs)
        texts = [_one_line(item) for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if any(texts):
            found[ours] = ", ".join(text for text in texts if text)[:_LONGEST]
    return found


def _text(path: Path) -> str:
    return decode(read_bytes(path, _MAX_BYTES), str(path))


def _one_line(text: str) -> str:
    return "".join(character for character in " ".join(text.split()) if character.isprintable())[:_LONGEST]
