# SPDX-License-Identifier: Apache-2.0
"""The layers that get adapters: values of `adapter_tuning.layers` and `ia3_tuning.layers`.

Layers are counted from 0 in each stack, and ranges include both ends. The normal form is `all`, `none`, or numbers and
ranges in order, such as `0,3,12-14`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from nemo_launcher.config.constraints import shown
from nemo_launcher.config.fields import omitted
from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem

ALL = "all"
NONE = "none"
SELECTION_OF_NEMO = "layer_selection"
"""NeMo 1.23's key, a list that counts layers from 1; null means all."""
WORDS = 'all, a number, a range such as "12-14", or a list of these'
"""What a selection of at least one layer may be."""
STACKS = ("encoder", "decoder")
_RANGE = re.compile(r"([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?")
_NEGATIVE = re.compile(r"-\s*[0-9]+(?:\s*-\s*-?\s*[0-9]+)?")
_FORMS = 'a number such as 3, or a range such as "12-14"'


@dataclasses.dataclass(frozen=True)
class LayerNumbers:
    """A selection of layers: `all`, a number, a text such as "0,3,12-14", or a list of numbers and ranges."""

    may_be_none: bool = False
    """Whether an empty selection is valid."""

    @property
    def words(self) -> str:
        """What a selection may be."""
        return f"none, {WORDS}" if self.may_be_none else WORDS

    def broken(self, value: Any) -> str | None:
        """Return everything that is wrong with a selection, or None."""
        parsed = _parse(value)
        wrong = list(parsed.wrong)
        if not wrong and not parsed.ranges and not self.may_be_none:
            wrong.append("selects no layer")
        return "; ".join(wrong) or None

    def instead(self, value: Any) -> object:
        """Return the selection without its wrong parts, or `all` if nothing is left."""
        fits = isinstance(value, (int, str, list)) and not isinstance(value, bool)
        return (_text(_parse(value).ranges) if fits else "") or ALL

    def normal(self, value: Any) -> str:
        """Return the normal form of a valid selection."""
        return _text(_parse(value).ranges) or NONE


@dataclasses.dataclass(frozen=True)
class SomeStack:
    """A selection for each stack of which at least one is not empty."""

    def broken(self, value: Mapping[str, Any]) -> str | None:
        """Return what is wrong if no stack gets adapters."""
        empty = all(LayerNumbers().normal(selection) == NONE for selection in value.values())
        return "selects no layer of either stack" if empty else None

    def instead(self, value: object) -> object:
        """Return a valid mapping."""
        return dict.fromkeys(STACKS, ALL)


Selection: TypeAlias = int | str | list[int | str]


@dataclasses.dataclass(frozen=True)
class StackLayers:
    """`layers` of a T5, with a selection for each stack."""

    encoder: Annotated[Selection, LayerNumbers(may_be_none=True)]
    """The encoder's layers."""
    decoder: Annotated[Selection, LayerNumbers(may_be_none=True)]
    """The decoder's layers."""


Layers: TypeAlias = Annotated[Selection, LayerNumbers()] | Annotated[StackLayers, SomeStack()]
"""The type of `layers`; a plain selection applies to each stack."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithLayers:
    """Settings of adapters in chosen layers."""

    layers: Layers = omitted(ALL)
    """The layers that get adapters, from 0: `all`, a number, a range with both ends, or a list of these; for a T5 also
    a section with `encoder` and `decoder`, of which one may be `none`. Not a NeMo key."""


def described(layers: Layers) -> str:
    """Return a selection for messages: its normal form, for each stack if they differ."""
    if not isinstance(layers, StackLayers):
        return _normal(layers)
    return ", ".join(f"{stack} {_normal(getattr(layers, stack))}" for stack in STACKS)


def chosen_layers(layers: Layers, stack: str, count: int) -> frozenset[int]:
    """Return the selected layers, from 0, that a stack of `count` layers has."""
    found: set[int] = set()
    for first, last in _parse(_of_stack(layers, stack)).ranges:
        found |= set(range(first, min(count - 1, count - 1 if last is None else last) + 1))
    return frozenset(found)


def comparable(layers: Layers, counts: Mapping[str, int]) -> object:
    """Return `layers` such that equal selections in a base with these stacks are equal. counts: layers by stack."""
    chosen = {stack: chosen_layers(layers, stack, count) for stack, count in counts.items()}
    if all(len(chosen[stack]) == count for stack, count in counts.items()):
        return ALL
    texts = {
        stack: ALL if len(numbers) == counts[stack] else LayerNumbers().normal(sorted(numbers))
        for stack, numbers in chosen.items()
    }
    return texts if len(texts) > 1 else next(iter(texts.values()))


def stack_problems(layers: Layers, num_stacks: int, where: str) -> list[Problem]:
    """Return a problem if `layers` names the stacks of a T5 but the base has one stack. where: the full key."""
    if num_stacks > 1 or not isinstance(layers, StackLayers):
        return []
    selections = [_normal(layers.decoder), _normal(layers.encoder)]
    fix = override(where, next(selection for selection in selections if selection != NONE))
    return [Problem(where, "names encoder and decoder, but a GPT has one stack of layers", fix)]


def range_problems(layers: Layers, counts: Mapping[str, int], where: str) -> list[Problem]:
    """Return a problem if a base lacks selected layers. counts: layers of each stack; where: the full key."""
    kept = {stack: chosen_layers(layers, stack, count) for stack, count in counts.items()}
    absent = {stack: text for stack, count in counts.items() if (text := _beyond(layers, stack, count))}
    if not absent or (len(counts) == 1 and isinstance(layers, StackLayers)):
        return []
    parts = [
        f"the {stack if len(counts) > 1 else 'base'} has no layer {text}: its {counts[stack]} layers are "
        f"0-{counts[stack] - 1}"
        for stack, text in absent.items()
    ]
    texts: dict[str, object] = {stack: LayerNumbers().normal(sorted(numbers)) for stack, numbers in kept.items()}
    fix: object = texts if len(texts) > 1 else next(iter(texts.values()))
    return [Problem(where, "; ".join(parts), override(where, fix if any(kept.values()) else ALL))]


def from_one(selection: object) -> str | None:
    """Return the normal form of NeMo's `layer_selection`, whose layers count from 1; None if it is invalid."""
    if not isinstance(selection, list) or not selection:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in selection):
        return None
    return LayerNumbers().normal([n - 1 for n in selection])


def selection_problem(key: str, value: object) -> Problem | None:
    """Return the problem of NeMo's `layer_selection` in a job, with its value in the key here; None for other keys."""
    above, _, last = key.rpartition(".")
    if last != SELECTION_OF_NEMO:
        return None
    if value is None:
        return Problem(key, "NeMo's key is called layers here", "leave it out: adapters are in all layers")
    layers = from_one(value)
    what = f"NeMo's key counts layers from 1; {above}.layers counts from 0"
    return Problem(key, what, override(f"{above}.layers", ALL if layers is None else layers))


@dataclasses.dataclass(frozen=True, slots=True)
class _Parsed:
    """What a selection says."""

    ranges: Sequence[tuple[int, int | None]]
    """First and last layer of each range, in order, without overlaps; None as the last: to the end."""
    wrong: Sequence[str]
    """What is wrong with it."""


def _parse(value: object) -> _Parsed:
    parts = [part.strip() for item in (value if isinstance(value, list) else [value]) for part in str(item).split(",")]
    if [part.casefold() for part in parts] == [ALL]:
        return _Parsed([(0, None)], [])
    if not parts or [part.casefold() for part in parts] == [NONE]:
        return _Parsed([], [])
    ranges, wrong = [], []
    for part in parts:
        match = _RANGE.fullmatch(part)
        if match is None:
            negative = _NEGATIVE.fullmatch(part)
            wrong.append(f"{part} is negative: layers count from 0" if negative else f"{shown(part)} is not {_FORMS}")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            wrong.append(f"the range {first}-{last} is reversed")
        ranges.append((min(first, last), max(first, last)))
    return _Parsed(list(_merged(ranges)), wrong)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Yield the same layers in ascending ranges that neither overlap nor touch."""
    current: tuple[int, int] | None = None
    for first, last in sorted(ranges):
        if current is not None and first <= current[1] + 1:
            current = current[0], max(current[1], last)
            continue
        if current is not None:
            yield current
        current = first, last
    if current is not None:
        yield current


def _text(ranges: Sequence[tuple[int, int | None]]) -> str:
    if any(last is None for _, last in ranges):
        return ALL
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _of_stack(layers: Layers, stack: str) -> object:
    return getattr(layers, stack) if isinstance(layers, StackLayers) else layers


def _normal(selection: object) -> str:
    return LayerNumbers().normal(selection)


def _beyond(layers: Layers, stack: str, count: int) -> str:
    """Return the selected layers that a stack of `count` layers lacks; "" if it has all."""
    ranges = _parse(_of_stack(layers, stack)).ranges
    return _text([(max(first, count), last) for first, last in ranges if last is not None and last >= count])
