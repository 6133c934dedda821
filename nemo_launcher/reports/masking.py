# SPDX-License-Identifier: Apache-2.0
"""A job's configuration as a report shows it, with every value masked that may be secret."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_launcher.adapters.sections import STAGES, learning_section
from nemo_launcher.config.keys import is_open, is_shown, type_at
from nemo_launcher.config.secret_text import HIDDEN, hide_keys, looks_like_key


def masked(values: Mapping[str, object], stage: str) -> dict[str, object]:
    """Return a stage's configuration without secrets, by the same rule as a command line (launcher.masking).

    Values of known keys that cannot be secret are shown, unless they look like a key.
    """
    schema = learning_section(values.get("model")) if stage.endswith("_learning") else STAGES[stage]
    return {key: _masked(value, schema, [key]) for key, value in values.items()}


def _masked(value: object, schema: object, keys: list[str]) -> object:
    if isinstance(value, Mapping) and value:
        return {key: _masked(item, schema, [*keys, str(key)]) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, schema, [*keys, str(place)]) for place, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float):
        return value if _may_show(schema, keys) else HIDDEN
    text = str(value)
    return hide_keys(text) if _may_show(schema, keys) and not looks_like_key(text) else HIDDEN


def _may_show(schema: object, keys: list[str]) -> bool:
    kind = type_at(schema, keys)
    if kind is None or not is_shown(kind):
        return False
    above = [type_at(schema, keys[:count]) for count in range(1, len(keys))]
    return all(section is None or not is_open(section) for section in above)
