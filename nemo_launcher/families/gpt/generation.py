# SPDX-License-Identifier: Apache-2.0
"""Generation with a GPT: keys and values of shared prefixes are computed and cached once.

A sample's keys and values are those of its group's prefix, in a row of one cache, and its own, in a row of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nemo_launcher.data.prefix_tree import MIN_SHARED_TOKENS, PrefixGroup, common_prefix, prefix_groups, prefix_trees
from nemo_launcher.families.gpt.logit_rows import LogitRows
from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.families.gpt.packing import Row
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.megatron.decoding import DecodingPlan, Sharing
from nemo_launcher.megatron.key_value_cache import KeyValueCache
from nemo_launcher.megatron.packed_weight import any_parameter
from nemo_launcher.megatron.relay import relay
from nemo_launcher.megatron.sizes import StackStages
from nemo_launcher.megatron.transfer import on_device


class GPTDecoding:
    """The running samples of a GPT; see families.decoding.Decoding."""

    def __init__(
        self, model: FrozenGPT, device: torch.device, samples: Sequence[GPTSample], max_new_tokens: int
    ) -> None:
        self.model, self.device, self.max_new_tokens = model, device, max_new_tokens
        self.heads = model.config.num_query_groups // parallel.tensor_size()
        self.prompts = [sample.input_ids for sample in samples]
        trees = prefix_trees(self.prompts)
        self.groups = [self._group(group) for tree in trees for group in prefix_groups(tree)]
        self.group_of = {member: number for number, group in enumerate(self.groups) for member in group.members}
        self.unfinished = [len(group.members) for group in self.groups]
        self.running: list[int] = []
        self.row_of: dict[int, int] = {}  # each group's row in `prefixes`
        self.own, self.prefixes = KeyValueCache(), KeyValueCache()
        self.sharing: Sharing | None = None

    def _group(self, group: PrefixGroup) -> PrefixGroup:
        """Return a group whose members each keep a token to predict from; a single prompt is all prefix."""
        shortest = min(len(self.prompts[member]) for member in group.members)
        return PrefixGroup(group.members, min(group.prefix, shortest - 1) if len(group.members) > 1 else shortest)

    def step(self, tokens: Sequence[int], joining: Sequence[int]) -> Tensor:
        """Run one new token of each running sample, and the prompts of samples (indices) that join after them.

        Returns the logits of each sample's next token, [running samples, vocabulary].
        """
        row, count = Row(), len(tokens)
        decoding = DecodingPlan(self.own, self.prefixes, running=count)
        for place, token in enumerate(tokens):
            length = self.own.lengths[place]
            position = self.groups[self.group_of[self.running[place]]].prefix + length
            decoding.own_places.add(place, length, row.put([token], position))
            self.own.lengths[place] += 1
        if self.sharing is None and count:
            rows = [self.row_of[self.group_of[sample]] for sample in self.running]
            self.sharing = Sharing(rows, self.prefixes.lengths, self.heads, self.device)
        decoding.sharing = self.sharing
        wanted = [*range(count), *self._join(row, decoding, joining)]
        if joining:
            self.sharing = None
        return self._run(row, AttentionPlan(row.groups, decoding), wanted)

    def _join(self, row: Row, decoding: DecodingPlan, joining: Sequence[int]) -> list[int]:
        """Add prompts to the row, shared prefixes once; return the row index of each prompt's last token."""
        sources = {number: self._source(number) for number in dict.fromkeys(map(self.group_of.__getitem__, joining))}
        places = self._lay_out(row, decoding, joining, sources)
        for number in [number for number in sources if number not in self.row_of]:
            self._add_row(number, *sources[number])
            sample = next(sample for sample in joining if self.group_of[sample] == number)
            cached = sources[number][1]
            own = places[sample][: self.groups[number].prefix - cached]
            decoding.prefix_places.add(self.row_of[number], cached, own)
        first = len(self.running)
        for place, sample in enumerate(joining, first):
            number = self.group_of[sample]
            own = places[sample][self.groups[number].prefix - sources[number][1] :]
            decoding.own_places.add(place, 0, own)
            self.own.lengths.append(len(own))
        self.running += joining
        self._drop_ended(left=0)
        self.own.reserve(len(self.running), max(self.own.lengths[first:], default=0) + self.max_new_tokens)
        return [places[sample][-1] for sample in joining]

    def _source(self, number: int) -> tuple[int, int]:
        """Return a row of the prefix cache that a group continues, and the number of shared tokens (0: none)."""
        group = self.groups[number]
        if number in self.row_of:
            return self.row_of[number], group.prefix
        prompt = self.prompts[group.members[0]][: group.prefix]
        prompt = prompt[: min(len(self.prompts[member]) for member in group.members) - 1]
        row, shared = 0, 0
        for other, place in self.row_of.items():
            held = self.prompts[self.groups[other].members[0]][: self.groups[other].prefix]
            row, shared = max((row, shared), (place, common_prefix(prompt, held)), key=lambda found: found[1])
        return (row, shared) if shared >= MIN_SHARED_TOKENS else (0, 0)

    def _lay_out(
        self, row: Row, decoding: DecodingPlan, joining: Sequence[int], sources: Mapping[int, tuple[int, int]]
    ) -> dict[int, list[int]]:
        """Add the uncached tokens of prompts to the row; return their row indices for each sample."""
        by_source: dict[tuple[int, int], list[int]] = {}
        for sample in joining:
            by_source.setdefault(sources[self.group_of[sample]], []).append(sample)
        places: dict[int, list[int]] = {}
        for (source, cached), members in by_source.items():
            rest = [self.prompts[member][cached:] for member in members]
            for tree in prefix_trees(rest):
                if cached:
                    decoding.continued[len(row.groups)] = source
                found = row.put_tree(tree, rest, cached=cached)
                places |= {members[index]: lies for index, lies in found.items()}
        return places

    def _add_row(self, number: int, source: int, cached: int) -> None:
        """Reserve a row of the prefix cache for a group, and copy the part that another row already holds."""
        held, length = self.prefixes.lengths, self.groups[number].prefix
        place = self.row_of[number] = held.index(0) if 0 in held else len(held)
        held[place : place + 1] = [length]
        self.prefixes.reserve(len(held), length)
        if cached:
            self.prefixes.copy(source, place, cached)

    def select(self, kept: Sequence[int]) -> None:
        """Keep only some of the running samples (indices into them), in this order; free prefixes without samples."""
        for place in set(range(len(self.running))).difference(kept):
            self.unfinished[self.group_of[self.running[place]]] -= 1
        self._drop_ended(left=1)  # later prompts may continue it
        self.own.select(kept)
        self.running = [self.running[place] for place in kept]
        self.sharing = None

    def _drop_ended(self, left: int) -> None:
        """Free the prefix rows of finished groups while more than `left` rows remain."""
        for number in [number for number in self.row_of if not self.unfinished[number]]:
            if len(self.row_of) > left:
                self.prefixes.lengths[self.row_of.pop(number)] = 0

    def _run(self, row: Row, plan: AttentionPlan, wanted: Sequence[int]) -> Tensor:
        """Return the logits at some of the row's positions, [n, vocabulary], after all pipeline stages."""
        tokens, positions = on_device(torch.tensor([row.tokens, row.positions]), self.device)[:, None]
        logits = LogitRows.of(torch.tensor(wanted)).to(self.device)

        def forward(received: Tensor | None) -> Tensor:
            if received is not None:
                self.model.set_input_tensor([received])
            output: Tensor = self.model(tokens, positions, plan, logits)
            return output

        return relay(
            forward,
            StackStages(0, parallel.pipeline_size()),
            hidden=(tokens.size(1), 1, self.model.config.hidden_size),
            result=(len(wanted), self.model.num_logits),
            like=any_parameter(self.model),
        )
