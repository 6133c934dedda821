"""Generation with a GPT: what prompts share is computed once and its keys and values are kept once.

A sample's tokens are the prefix of its group, in a row of one cache, and its own behind it, in a row of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.data.grouping import PrefixGroup, group_by_prefix
from nemo_launcher.data.prompts import Sample
from nemo_launcher.models import parallel
from nemo_launcher.models.attention import AttentionPlan, Group
from nemo_launcher.models.decoding import DecodingPlan, Sharing
from nemo_launcher.models.key_value_cache import KeyValueCache, Places
from nemo_launcher.models.relay import relay
from nemo_launcher.models.sizes import StackStages

if TYPE_CHECKING:
    from nemo_launcher.checkpoint.base import Base


@dataclass(slots=True)
class _Row:
    """The tokens of one forward pass: one of each running sample, then the prompts that join."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    own: Places = field(default_factory=Places)
    prefixes: Places = field(default_factory=Places)
    continued: dict[int, int] = field(default_factory=dict)

    def add(self, tokens: Sequence[int], position: int) -> range:
        """Put tokens behind the others; return where they lie. position: of the first one in its text."""
        start = len(self.tokens)
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        return range(start, len(self.tokens))


class GPTDecoding:
    """The running samples of a GPT; see evaluation.generation.Decoding."""

    def __init__(self, base: Base, samples: Sequence[Sample], max_new_tokens: int) -> None:
        self.model, self.device, self.max_new_tokens = base.model, base.device, max_new_tokens
        self.heads = base.model.config.num_query_groups // parallel.tensor_size()
        self.prompts = [sample.input_ids for sample in samples]
        self.groups = [self._group(group) for group in group_by_prefix(self.prompts)]
        self.group_of = {member: number for number, group in enumerate(self.groups) for member in group.members}
        self.unfinished = [len(group.members) for group in self.groups]
        self.running: list[int] = []
        self.row_of: dict[int, int] = {}  # where a group's prefix lies in `prefixes`
        self.own, self.prefixes = KeyValueCache(), KeyValueCache()
        self.sharing: Sharing | None = None

    def _group(self, group: PrefixGroup) -> PrefixGroup:
        """Return a group in which each branch has a token to predict from; all of a lone prompt is its prefix."""
        shortest = min(len(self.prompts[member]) for member in group.members)
        return PrefixGroup(group.members, min(group.prefix, shortest - 1) if len(group.members) > 1 else shortest)

    def step(self, tokens: Sequence[int], joining: Sequence[int]) -> Tensor:
        """Run one new token of each running sample, and the prompts of samples (indices) that join behind them.

        Returns the logits of the next token of each, [running samples, vocabulary].
        """
        row, count = _Row(), len(tokens)
        for place, token in enumerate(tokens):
            length = self.own.lengths[place]
            position = self.groups[self.group_of[self.running[place]]].prefix + length
            row.own.add(place, length, row.add([token], position))
            self.own.lengths[place] += 1
        if self.sharing is None and count:
            rows = [self.row_of[self.group_of[sample]] for sample in self.running]
            self.sharing = Sharing(rows, self.prefixes.lengths, self.heads, self.device)
        wanted = [*range(count), *self._join(row, joining)]
        decoding = DecodingPlan(self.own, self.prefixes, row.own, row.prefixes, self.sharing, count, row.continued)
        if joining:
            self.sharing = None
        return self._run(row, AttentionPlan(row.groups, decoding), wanted)

    def _join(self, row: _Row, joining: Sequence[int]) -> list[int]:
        """Lay prompts out in the row, group by group; return where the last token of each lies."""
        first = len(self.running)
        places = {sample: first + number for number, sample in enumerate(joining)}
        by_group: dict[int, list[int]] = {}
        for sample in joining:
            by_group.setdefault(self.group_of[sample], []).append(sample)
        last: dict[int, int] = {}
        for number, members in by_group.items():
            self._start_group(row, number, [len(self.prompts[member]) for member in members])
            prefix = self.groups[number].prefix
            for member in members:
                row.own.add(places[member], 0, row.add(self.prompts[member][prefix:], prefix))
                last[member] = len(row.tokens) - 1
        self.running += joining
        branches = [len(self.prompts[sample]) - self.groups[self.group_of[sample]].prefix for sample in joining]
        self.own.lengths += branches
        self.own.reserve(len(self.running), max(branches, default=0) + self.max_new_tokens)
        return [last[sample] for sample in joining]

    def _start_group(self, row: _Row, number: int, lengths: Sequence[int]) -> None:
        """Note where a group of prompts lies in the row, and put its prefix there unless it is in the cache."""
        group, start = self.groups[number], len(row.tokens)
        branches = tuple(length - group.prefix for length in lengths)
        if number in self.row_of:
            row.continued[len(row.groups)] = self.row_of[number]
            row.groups.append(Group(start, 0, branches, cached=group.prefix))
            return
        held = self.prefixes.lengths
        place = held.index(0) if 0 in held else len(held)
        held[place : place + 1] = [group.prefix]
        self.prefixes.reserve(len(held), group.prefix)
        self.row_of[number] = place
        row.prefixes.add(place, 0, row.add(self.prompts[group.members[0]][: group.prefix], 0))
        row.groups.append(Group(start, group.prefix, branches))

    def select(self, kept: Sequence[int]) -> None:
        """Go on with some of the running samples (places among them), in this order; drop prefixes without any."""
        for place in set(range(len(self.running))).difference(kept):
            number = self.group_of[self.running[place]]
            self.unfinished[number] -= 1
            if not self.unfinished[number]:
                self.prefixes.lengths[self.row_of.pop(number)] = 0
        self.own.select(kept)
        self.running = [self.running[place] for place in kept]
        self.sharing = None

    def _run(self, row: _Row, plan: AttentionPlan, wanted: Sequence[int]) -> Tensor:
        """Return the logits of some of the row's positions, [n, vocabulary], after all pipeline stages."""
        tokens, positions = torch.tensor([row.tokens, row.positions], device=self.device)[:, None]
        logit_positions = torch.tensor(wanted, device=self.device)

        def forward(received: Tensor | None) -> Tensor:
            if received is not None:
                self.model.set_input_tensor(received)
            return self.model(tokens, positions, plan, logit_positions)

        return relay(
            forward,
            StackStages(0, parallel.pipeline_size()),
            hidden=(tokens.size(1), 1, self.model.config.hidden_size),
            result=(len(wanted), self.model.num_logits),
            like=next(self.model.parameters()),
        )
