# SPDX-License-Identifier: Apache-2.0
"""Drop shipped settings that belong to a different adapter type than the chosen one.

The shipped files have every setting of one type. When `adapter_tuning.type=...`, on the command line or in a derived
file, chooses another type, settings left over from the first are dropped; those that the user set are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemo_launcher import places
from nemo_launcher.adapters.sections import TUNING
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign_yaml import load_yaml

_BLOCK = "adapter_learning.model.adapter_tuning"


def without_other_types(section: object, overrides: Sequence[str]) -> object:
    """Return the adapter_learning section without shipped settings of other types. overrides: the command line's."""
    if not isinstance(section, dict) or not isinstance(model := section.get("model"), dict):
        return section
    block = model.get("adapter_tuning")
    if not isinstance(block, dict):
        return section
    foreign = [key for key in TUNING.foreign_keys(block) if not _is_given(key, overrides)]
    if not foreign:
        return section
    shipped = list(_shipped_blocks())
    dropped = {key for key in foreign if block[key] is None or any(block[key] == other.get(key) for other in shipped)}
    kept = {key: value for key, value in block.items() if key not in dropped}
    return {**section, "model": {**model, "adapter_tuning": kept}}


def _is_given(key: str, overrides: Sequence[str]) -> bool:
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    above = "".join(text for name, text in given.items() if _BLOCK.startswith(name) and "." in name)
    return f"{_BLOCK}.{key}" in given or f"{key}:" in above


def _shipped_blocks() -> Iterator[dict[str, object]]:
    for path in sorted((places.CONF / "adapter_learning").rglob("*.yaml")):
        try:
            content = load_yaml(path)
        except UserError:
            continue  # a user's file in this folder; Hydra reports errors in the chosen one
        model = content.get("model") if isinstance(content, dict) else None
        block = model.get("adapter_tuning") if isinstance(model, dict) else None
        if isinstance(block, dict):
            yield block
