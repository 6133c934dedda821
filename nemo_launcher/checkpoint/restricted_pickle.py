# SPDX-License-Identifier: Apache-2.0
"""Reader of pickles without the pickle module: plain containers, and only names that the caller defines.

Nothing is imported, and only functions returned by `find` are called. Time and memory are bounded by the length of the
data: references cannot multiply the size of values, keys have cheap hashes, and there are no attributes. Opcodes: PEP
307, PEP 3154 and Python's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TypeVar

MAX_BYTES = 8 << 20
"""The maximum size of a pickle; that of a model with 10,000 tensors has 2 MB."""
MAX_DEPTH = 60
"""The maximum nesting of tuples."""

MAX_ODD_KEYS = 10_000
"""The maximum number of keys other than text: numbers with equal hashes make dictionaries take quadratic time."""

_MARK = object()
_SCALARS = (str, int, float, bool, bytes, type(None))

Kind = TypeVar("Kind")


class PickleError(ValueError):
    """The data is not a pickle, or holds more than plain values and known names."""


class Record:
    """An instance of a class that is not imported: its name, arguments and attributes, for inspection."""

    def __init__(self, name: str, arguments: tuple[object, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.attributes: dict[str, object] = {}


class Named:
    """A name in a pickle and the caller's value for it."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value


def loads(
    data: bytes, find: Callable[[str, str], object], persistent: Callable[[object], object] | None = None
) -> object:
    """Return the content of a pickle.

    find: returns the value of a name (module, name), or a function to call with the pickle's arguments; raises
    PickleError for unknown names. persistent: returns the value of a persistent id. Raises PickleError.
    """
    if len(data) > MAX_BYTES:
        raise PickleError(f"the pickle has {len(data):,} bytes")
    machine = _Machine(data, find, persistent)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise PickleError("the pickle is truncated or damaged") from None


class _Machine:
    """The stack machine. Each opcode is one entry of _OPCODES."""

    def __init__(
        self, data: bytes, find: Callable[[str, str], object], persistent: Callable[[object], object] | None
    ) -> None:
        self.data, self.position = data, 0
        self.find, self.persistent = find, persistent
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.depths: dict[int, int] = {}  # of tuples, by id; `kept` keeps them alive
        self.kept: list[object] = []
        self.odd_keys = 0

    def run(self) -> object:
        while True:
            code = self.data[self.position]
            self.position += 1
            if code == 0x2E:  # STOP
                return self.value(self.stack[-1])
            operation = _OPCODES.get(code)
            if operation is None:
                raise PickleError(f"the opcode {code:#x} does not occur in weights")
            operation(self)

    # --- reading ------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise IndexError
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 300)
        if end < 0:
            raise IndexError
        return self.take(end + 1 - self.position)[:-1].decode()

    # --- the stack ----------------------------------------------------------------------------------------------

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError
        return value

    def pop_to_mark(self) -> list[object]:
        items: list[object] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def top(self, kind: type[Kind]) -> Kind:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise PickleError("an operation on a value that is not a container")
        return value

    def value(self, item: object) -> object:
        """Return the value of an item to store: a name may be a value, but not a function."""
        if not isinstance(item, Named):
            return item
        if callable(item.value):
            raise PickleError(f"holds {item.name}, which is not a tensor; it is not executed")
        return item.value

    # --- containers ---------------------------------------------------------------------------------------------

    def tuple(self, items: list[object]) -> None:
        depth = 1 + max((self.depths.get(id(item), 0) for item in items), default=0)
        if depth > MAX_DEPTH:
            raise PickleError("tuples nested too deeply")
        made = tuple(map(self.value, items))
        self.depths[id(made)] = depth
        self.kept.append(made)
        self.push(made)

    def append(self, items: list[object]) -> None:
        self.top(list).extend(map(self.value, items))

    def set_items(self, items: list[object]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise IndexError
        for key, item in zip(items[::2], items[1::2], strict=True):
            key = self.value(key)
            plain = isinstance(key, (*_SCALARS, Record))
            if not plain and not (isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key)):
                raise PickleError(f"a key that is a {type(key).__name__}")
            self.odd_keys += not isinstance(key, (str, Record))
            if self.odd_keys > MAX_ODD_KEYS:
                raise PickleError(f"more than {MAX_ODD_KEYS:,} keys that are not text")
            target[key] = self.value(item)

    # --- names --------------------------------------------------------------------------------------------------

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is not text")
        self.push(Named(f"{module}.{name}"[:200], self.find(module, name)))

    def call(self, function: object, arguments: object) -> None:
        if not isinstance(function, Named) or not callable(function.value) or not isinstance(arguments, tuple):
            raise PickleError("a call of a value that is not a function")
        self.push(function.value(*arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Record):
            if isinstance(state, tuple) and len(state) == 2 and state[0] is None:
                state = state[1]
            if isinstance(state, dict):
                target.attributes |= {str(key): value for key, value in state.items() if isinstance(key, str)}
            else:
                target.attributes["state"] = state
        elif isinstance(
            target, (list, tuple, *_SCALARS)
        ):  # an OrderedDict's own attributes: torch keeps versions there
            raise PickleError("attributes of a value without attributes")

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise PickleError("a persistent id")
        self.push(self.persistent(self.value(self.pop())))


def _memoize(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number(1)), "little", signed=True))


def _pairs(machine: _Machine, count: int) -> list[object]:
    return [machine.pop() for _ in range(count)][::-1]


def _two(action: Callable[[_Machine, object, object], None]) -> Callable[[_Machine], None]:
    def operation(machine: _Machine) -> None:
        second, first = machine.pop(), machine.pop()
        action(machine, first, second)

    return operation


_OPCODES: Mapping[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.pop_to_mark(),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: _long,
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.push(m.take(m.number(4)).decode("utf-8")),
    0x8C: lambda m: m.push(m.take(m.number(1)).decode("utf-8")),
    0x8D: lambda m: m.push(m.take(m.number(8)).decode("utf-8")),
    ord("C"): lambda m: m.push(m.take(m.number(1))),
    ord("B"): lambda m: m.push(m.take(m.number(4))),
    ord(")"): lambda m: m.tuple([]),
    ord("t"): lambda m: m.tuple(m.pop_to_mark()),
    0x85: lambda m: m.tuple(_pairs(m, 1)),
    0x86: lambda m: m.tuple(_pairs(m, 2)),
    0x87: lambda m: m.tuple(_pairs(m, 3)),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_to_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items(_pairs(m, 2)),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    0x8F: lambda m: m.push([]),  # a set, as a list of its members
    0x90: lambda m: m.append(m.pop_to_mark()),
    0x91: lambda m: m.tuple(m.pop_to_mark()),  # a frozenset
    ord("q"): lambda m: _memoize(m, m.number(1)),
    ord("r"): lambda m: _memoize(m, m.number(4)),
    0x94: lambda m: _memoize(m, len(m.memo)),
    ord("h"): lambda m: m.push(m.memo[m.number(1)]),
    ord("j"): lambda m: m.push(m.memo[m.number(4)]),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: _two(lambda m, module, name: m.name(module, name)),
    ord("R"): _two(lambda m, function, arguments: m.call(function, arguments)),
    0x81: _two(lambda m, function, arguments: m.call(function, arguments)),
    ord("b"): lambda m: m.build(),
    ord("Q"): lambda m: m.persistent_id(),
}
