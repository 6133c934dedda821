# SPDX-License-Identifier: Apache-2.0
"""All configuration keys with text values, from the dataclasses in nemo_launcher/config/sections."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemo_launcher.adapters.sections import AdapterLearning, Ia3Learning
from nemo_launcher.clusters import CLUSTERS, registry
from nemo_launcher.clusters.registry import any_section
from nemo_launcher.config import sections

SECTIONS: dict[str, Any] = {
    "": sections.TopLevel,
    "cluster": any_section(),
    "data_preparation": sections.DataPreparation,
    "conversion_hf2nemo": sections.Conversion,
    "adapter_learning": AdapterLearning,
    "ia3_learning": Ia3Learning,
    "evaluation": sections.Evaluation,
}


@dataclass(frozen=True, slots=True)
class TextKey:
    """A key that takes text. form: what the text is in its value: itself, an entry of a list, a value or key of a
    mapping.
    """

    name: str
    form: str

    @property
    def stage(self) -> str:
        """The stage that must run for the key to have an effect."""
        section = self.name.partition(".")[0]
        return section if section in SECTIONS and section not in ("", "cluster") else "adapter_learning"

    def override(self, quoted: str) -> str:
        """Return the command-line override that sets it to a quoted text."""
        values = {
            "text": quoted,
            "entry": f"[{quoted}]",
            "value": f"{{comment: {quoted}}}",
            "key": f"{{{quoted}: '1'}}",
        }
        return f"++{self.name}={values[self.form]}"

    def __str__(self) -> str:
        return f"{self.name}:{self.form}"


def text_keys() -> list[TextKey]:
    """Return all text keys, in the order of the sections."""
    found = [key for name, schema in SECTIONS.items() for key in _keys(schema, name)]
    return list(dict.fromkeys(found))


def counts_on(key: TextKey, cluster: str) -> bool:
    """Return whether a key applies to a kind of cluster; kinds without options use the first one's file."""
    section = CLUSTERS[cluster].section or next(schema for _, schema in registry.sections())
    return not key.name.startswith("cluster.") or key in set(_keys(section, "cluster"))


def _keys(schema: Any, name: str) -> Iterator[TextKey]:
    if dataclasses.is_dataclass(schema):
        for field, hint in typing.get_type_hints(schema, include_extras=True).items():
            yield from _keys(hint, f"{name}.{field}" if name else field)
        return
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if origin is typing.Annotated:
        yield from _keys(arguments[0], name)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _keys(argument, name)
    elif origin is list:
        if any(key.form == "text" for key in _keys(arguments[0], name)):
            yield TextKey(name, "entry")
        yield from (key for key in _keys(arguments[0], f"{name}.0") if key.name != f"{name}.0")
    elif origin is dict:
        yield TextKey(name, "value")
        yield TextKey(name, "key")
    elif schema is str or schema is Any:
        yield TextKey(name, "text")
