# SPDX-License-Identifier: Apache-2.0
"""YAML for the reader of foreign files (foreign.py), and a writer whose output all YAML readers parse alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import (
    COPY,
    HALF_A_PAIR,
    MAX_DEPTH,
    MAX_DIGITS,
    SURROGATE,
    decode,
    first_line,
    read_bytes,
)

MAX_YAML_BYTES = 4 * 2**20
"""Maximum size of a YAML file. A model_config.yaml has about 10 kB; PyYAML takes about 10 s for the maximum."""
MAX_YAML_NODES = 100_000
"""Maximum number of values, with every alias expanded."""
MAX_ODD_KEYS = 10_000
"""Maximum number of keys that are not text. Numbers with equal hashes would make a mapping take quadratic time."""


def load_yaml(path: Path) -> Any:
    """Return a YAML file as plain values. Raises UserError as `read_bytes` and `parse_yaml` do."""
    return parse_yaml(read_bytes(path, MAX_YAML_BYTES), str(path))


def parse_yaml(text: bytes | str, source: str) -> object:
    """Return YAML as plain dicts, lists, strings, numbers, booleans and None; numbers follow OmegaConf's rules.

    Raises UserError for text that is not UTF-8 or not YAML, tags of other types, repeated keys, nesting beyond
    MAX_DEPTH, unpaired surrogates, and more than MAX_YAML_NODES values with every alias expanded.
    """
    return _read(text, source, lambda loader: loader.get_single_data())


def yaml_node(text: str, source: str) -> yaml.Node | None:
    """Return YAML as nodes, which know their places in the text. Raises UserError as `parse_yaml` does."""
    node: yaml.Node | None = _read(text, source, lambda loader: loader.get_single_node())
    return node


def _read(text: bytes | str, source: str, read: Callable[[_Loader], Any]) -> Any:
    if len(text) > MAX_YAML_BYTES:
        raise UserError(Problem(source, f"has more than {MAX_YAML_BYTES:,} bytes, the limit for a configuration"))
    loader = None
    try:
        loader = _Loader(decode(text, source))
        return read(loader)
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(Problem(source, f"is not valid YAML: {first_line(error)}", COPY)) from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(value: object) -> str:
    """Return plain values as YAML that `parse_yaml`, OmegaConf and PyYAML read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e5, which OmegaConf reads as a number and PyYAML does not; writes no anchors.

    All mappings and sequences, including OmegaConf's, are written as plain ones.
    """

    def ignore_aliases(self, data: object) -> bool:
        return True


_MAPPING, _SEQUENCE = cast("type[Any]", Mapping), cast("type[Any]", Sequence)
_Dumper.add_multi_representer(_MAPPING, lambda dumper, value: dumper.represent_dict(dict(value)))
_Dumper.add_multi_representer(_SEQUENCE, lambda dumper, value: dumper.represent_list(list(value)))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)?\.?[\d_]*[eE][-+]?\d+"), list("-+0123456789.")
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with OmegaConf's numbers, no repeated keys, and a bound on expanded aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._nodes = self._odd_keys = 0
        self._sizes: dict[str | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            # an anchor without a size is still being read, so it contains itself
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise yaml.MarkedYAMLError(problem=f"the anchor {event.anchor!r} contains itself")
            self._count(self._sizes.get(event.anchor, 1))
            return super().compose_node(parent, index)
        if isinstance(event, yaml.ScalarEvent) and SURROGATE.search(event.value):  # written as an escape
            raise yaml.MarkedYAMLError(problem=HALF_A_PAIR)
        before = self._nodes
        self._count(1)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_YAML_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_YAML_NODES:,} values once aliases are expanded")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or mapping", problem_mark=key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="merge keys (<<) are unsupported", problem_mark=key_node.start_mark)
            if key_node.value in keys:
                what = f"the key {key_node.value[:60]!r} occurs twice"
                raise yaml.MarkedYAMLError(problem=what, problem_mark=key_node.start_mark)
            keys.add(key_node.value)
            self._odd_keys += key_node.tag != "tag:yaml.org,2002:str"
        if self._odd_keys > MAX_ODD_KEYS:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_ODD_KEYS:,} keys that are not text")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise yaml.MarkedYAMLError(problem="a number with too many digits", problem_mark=node.start_mark)
        return super().construct_yaml_int(node)

    def refuse(self, node: yaml.Node) -> object:
        raise yaml.MarkedYAMLError(problem=f"could not determine a constructor for {node.tag!r}")


# OmegaConf reads 1e5 as a number, PyYAML as text; OmegaConf keeps dates as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag in ("binary", "timestamp", "omap", "pairs", "set"):  # not plain values; unknown tags are refused too
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.refuse)
