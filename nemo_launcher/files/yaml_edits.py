# SPDX-License-Identifier: Apache-2.0
"""Remove, rename and add keys in the text of a YAML file; comments and all other lines stay as they are."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from nemo_launcher.files.foreign_yaml import dump_yaml, yaml_node

_SOURCE = "the text"  # it has been parsed before
KeyPath = tuple[str, ...]
_Pair = tuple[yaml.Node, yaml.Node]


def removed(text: str, path: KeyPath) -> str:
    """Return the text without a key; sections above that have no other key go with it.

    Raises KeyError if the key is absent, and ValueError if it is in a section in braces on one line.
    """
    pairs = _pairs(text, path)
    while len(pairs) > 1 and len(_siblings(pairs[-2][1])) == 1:
        pairs.pop()
    (key, value), above = pairs[-1], pairs[-2][1] if len(pairs) > 1 else yaml_node(text, _SOURCE)
    if isinstance(above, yaml.MappingNode) and above.flow_style:
        raise ValueError(f"{'.'.join(path)} is in a section in braces")
    lines = text.splitlines(keepends=True)
    return "".join(lines[: key.start_mark.line] + lines[_last_line(value) + 1 :])


def renamed(text: str, path: KeyPath, name: str) -> str:
    """Return the text with another name of a key, in the same place. Raises KeyError if the key is absent."""
    key, _ = _pairs(text, path)[-1]
    return text[: key.start_mark.index] + name + text[key.end_mark.index :]


def added(text: str, name: str, value: object) -> str:
    """Return the text with a top-level key at its end."""
    return text.rstrip("\n") + "\n" + dump_yaml({name: value})


def lines_of(text: str, path: KeyPath) -> tuple[int, int]:
    """Return the first line of a key and the last one of its value, counted from 0. Raises KeyError if it is absent."""
    key, value = _pairs(text, path)[-1]
    return key.start_mark.line, _last_line(value)


def has(text: str, path: KeyPath) -> bool:
    """Return whether the file has a key."""
    try:
        return bool(_pairs(text, path))
    except KeyError:
        return False


def _pairs(text: str, path: KeyPath) -> list[_Pair]:
    """Return the key and value of each part of a path."""
    node, pairs = yaml_node(text, _SOURCE), []
    for name in path:
        found = next((pair for pair in _siblings(node) if pair[0].value == name), None)
        if found is None:
            raise KeyError(".".join(path))
        pairs.append(found)
        node = found[1]
    return pairs


def _siblings(node: yaml.Node | None) -> list[_Pair]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a value; a section's own end is where the next key starts, after comments."""
    return max(_ends(node))


def _ends(node: yaml.Node) -> Iterator[int]:
    below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else []
    below += node.value if isinstance(node, yaml.SequenceNode) else []
    if not below or getattr(node, "flow_style", False):
        is_block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        yield max(node.start_mark.line, node.end_mark.line - (is_block and node.end_mark.column == 0))
    for part in below:
        yield from _ends(part)
