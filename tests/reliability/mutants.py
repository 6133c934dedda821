# SPDX-License-Identifier: Apache-2.0
"""Mutants of bytes and of trees of values: byte flips, cuts, hostile values, and rewritings that change nothing.

A format offers `harmless` (another way to write the same), `structural` (still its format, another content) and
`parses` (whether a first, plain parser takes it).
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import yaml

RAW = "@@RAW@@"
"""A marker for text that only the written file can hold."""


class Format(Protocol):
    """One file format."""

    def harmless(self, draw: random.Random, content: bytes) -> bytes: ...

    def structural(self, draw: random.Random, content: bytes) -> bytes: ...

    def parses(self, content: bytes) -> bool: ...


# --- bytes ------------------------------------------------------------------------------------------------------

_INSERTED = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"{",
    b"[" * 5000,
    b'"',
    b"\x80\x04.",
    b"9" * 5000,
)


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Return the content with a few bytes flipped, truncated, removed, duplicated or inserted; never unchanged."""
    changed = bytearray(content)
    while bytes(changed) == content:
        at, length = draw.randrange(len(content)), draw.choice((1, 2, 8, 64, 512))
        way = draw.randrange(6)
        if way == 0:
            for _ in range(draw.choice((1, 1, 3, 20))):
                changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        elif way == 1:
            del changed[at:]
        elif way == 2:
            del changed[at : at + length]
        elif way == 3:
            changed[at:at] = content[at : at + length]
        elif way == 4:
            changed[at:at] = draw.choice(_INSERTED)
        else:
            changed[at : at + length] = bytes(min(length, len(content) - at))
    return bytes(changed)


# --- trees ------------------------------------------------------------------------------------------------------


def hostile_values(canary: Path) -> list[Any]:
    """Return values that break careless readers; the canary is a file that must never be created."""
    command = f"touch {canary}"
    return [
        *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308),
        *("", " ", "x", "x" * 300, "x" * 200_000, "0", "-1", "1e5", "null", "True", "nan", "\t", "a\nb", "\x1b[31m"),
        *(f"$({command})", f"`{command}`", f"; {command}", f"__import__('os').system('{command}')"),
        *("..", "../../x", str(canary), f"tokenizer/{canary}", "/dev/zero", "/proc/self/mem", "~", "%s%n{0.__class__}"),
        *("${oc.env:HOME}", "${x}", "\\${x}", "${", "\u202eabc", "\u0130", "e\u0301", "\U0001f600" * 50, "\u2028"),
        *([], {}, [[]], [1, 2, 3], {"a": None}, {"": 1}, ["x"] * 3000, {str(i): i for i in range(3000)}),
        *(_nested(45, []), _nested(400, {}), {"_target_": "os.system", "_args_": [command]}),
    ]


def _nested(depth: int, kind: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if isinstance(kind, list) else {"a": value}
    return value


def edited(draw: random.Random, tree: Any, values: list[Any]) -> Any:
    """Return a copy of a tree with one or two changes."""
    box = [json.loads(json.dumps(tree))]
    for _ in range(draw.choice((1, 1, 2))):
        holder, key = draw.choice(list(_places(box)))
        way = draw.randrange(10)
        if way < 4:
            holder[key] = deepcopy(draw.choice(values))  # otherwise a second change could nest it in itself
        elif way == 4 and holder is not box:
            del holder[key]
        elif way == 5:
            holder[key] = draw.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 3))
        elif way == 6 and isinstance(holder, dict):
            holder[draw.choice(("", "x", f"{key}_", str(key).upper(), "a" * 5000, "\u202e", "__class__"))] = holder.pop(
                key
            )
        elif way == 7:
            other, place = draw.choice(list(_places(box)))
            holder[key] = json.loads(json.dumps(other[place]))
        else:
            holder[key] = RAW
    return box[0]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value below `tree`; of long lists and mappings only the first ones."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in list(holder if isinstance(holder, dict) else range(len(holder)))[:40]:
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])


def shuffled(draw: random.Random, tree: Any) -> Any:
    """Return a tree with reordered mapping keys."""
    if isinstance(tree, dict):
        keys = list(tree)
        draw.shuffle(keys)
        return {key: shuffled(draw, tree[key]) for key in keys}
    return [shuffled(draw, item) for item in tree] if isinstance(tree, list) else tree


# --- JSON -------------------------------------------------------------------------------------------------------

_RAW_JSON = (
    *("NaN", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 400, "[" * 3000, "[" * 60 + "]" * 60, '{"a": 1, "a": 2}'),
    *('"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', "'x'", "1,", "01", "/* */ 1", "1.", '"\t"', "tru", "", '{"a": }'),
)


class Json:
    """A JSON file. values: the possible values in mutants; extra: an unread key may be added at the top level."""

    def __init__(self, values: list[Any], *, extra: bool = False) -> None:
        self.values, self.extra = values, extra

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        tree = shuffled(draw, json.loads(content))
        if self.extra and isinstance(tree, dict):
            tree["_remark_of_nobody"] = draw.choice(("x", 1, None, "\u00e9"))
        indent = draw.choice((None, 0, 1, 4))
        text = json.dumps(
            tree, indent=indent, ensure_ascii=draw.random() < 0.5, separators=draw.choice((None, (" , ", " : ")))
        )
        return f"{draw.choice(('', ' ', chr(10)))}{text}{draw.choice(('', chr(10), '  '))}".encode()

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        text = json.dumps(edited(draw, json.loads(content), self.values), ensure_ascii=draw.random() < 0.5)
        return text.replace(f'"{RAW}"', draw.choice(_RAW_JSON)).encode(errors="surrogatepass")

    def parses(self, content: bytes) -> bool:
        return _succeeds(lambda: json.loads(content.decode("utf-8-sig")))


class JsonLines(Json):
    """One JSON object per line."""

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        lines = [super(JsonLines, self).harmless(draw, line) for line in content.splitlines()]
        text = "\n".join(" ".join(line.decode().split("\n")) + draw.choice(("", "\n", "\r")) for line in lines)
        return (text + draw.choice(("", "\n", "\n\n"))).encode()

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = super().structural(draw, lines[at])
        return b"\n".join(lines) + b"\n"

    def parses(self, content: bytes) -> bool:
        return all(super(JsonLines, self).parses(line) for line in content.splitlines() if line.strip())


# --- YAML -------------------------------------------------------------------------------------------------------

_LAUGHS = (
    "{a: &a [x,x,x,x,x,x,x,x,x], "
    + ", ".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "}"
)


def raw_yaml(canary: Path) -> tuple[str, ...]:
    """Return YAML whose meaning depends on features that a reader must not support."""
    apply = f'!!python/object/apply:os.system ["touch {canary}"]'
    return (
        *(apply, "!!python/name:os.system", "!!binary aGk=", "!unknown x", "!!timestamp 2001-01-01", "!!int x"),
        *("&a [*a]", "*nowhere", _LAUGHS, "{<<: {a: 1}}", "[" * 400 + "]" * 400, "{a: 1, a: 2}", "? [a]", "{[a]: 1}"),
        *(".inf", "-.inf", ".nan", "9" * 5000, "0x10", "0o17", "1_000", "2001-01-01", "1:30", "12e03", "on", "~"),
        *(
            "@x",
            "`x`",
            "%x",
            '"\\ud800"',
            '"\\x00"',
            "|\n  x",
            "'",
            "[1, 2",
            "${oc.env:HOME}",
            "${nowhere.at.all}",
            "???",
        ),
    )


class Yaml:
    """A YAML file."""

    def __init__(self, values: list[Any], canary: Path) -> None:
        self.values, self.raw = values, raw_yaml(canary)

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        tree = shuffled(draw, yaml.safe_load(content))
        options = {"default_flow_style": draw.choice((False, None, True)), "indent": draw.choice((2, 4, 8))}
        text = yaml.safe_dump(
            tree, sort_keys=False, allow_unicode=draw.random() < 0.5, width=draw.choice((80, 10000)), **options
        )
        start = draw.choice(("", "# a remark\n", "---\n", "\n\n"))
        return (start + text + draw.choice(("", "# another\n", "\n", "...\n"))).encode()

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        tree = edited(draw, yaml.safe_load(content), self.values)
        with _deep_recursion():  # PyYAML recurses three times per level
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return text.replace(RAW, draw.choice(self.raw)).encode(errors="surrogatepass")

    def parses(self, content: bytes) -> bool:
        # composing an anchored bomb is cheap, constructing it is not
        return _succeeds(
            lambda: yaml.compose(content.decode(), yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
        )


@contextlib.contextmanager
def _deep_recursion() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _succeeds(function: Callable[[], object]) -> bool:
    try:
        function()
    except Exception:
        return False
    return True
