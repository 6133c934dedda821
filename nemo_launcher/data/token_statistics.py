# SPDX-License-Identifier: Apache-2.0
"""Lengths of a file's samples as training makes them, and what shared prefixes save."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_launcher.data.histogram import Bin, Quantiles, bins
from nemo_launcher.data.prefix_tree import PrefixOrder, prefix_trees
from nemo_launcher.data.prompt_encoder import LIMIT_FIXES, SampleEncoder
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.shown_sample import ShownSample, spelled_out

SHOWN = 3
"""The number of samples that are shown."""


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """The tokens of a file's samples."""

    limit: int
    """The maximum number of tokens in a sample."""
    limit_advice: str
    """How to raise the limit."""
    lengths: Quantiles
    """The number of tokens of each sample's prompt, with the answer in families with a single sequence."""
    histogram: list[Bin]
    """The same, in bins."""
    too_long: int
    """Samples above the limit: training drops them up to max_dropped_share, and refuses more."""
    longest: str
    """`file:line` of the longest sample."""
    truncated: int
    """Samples whose truncate_field was shortened to fit."""
    tokens: int
    """The input tokens of all samples within the limit."""
    trained_tokens: int | None
    """Their tokens in the loss; None for records without answers."""
    global_batch_size: int
    """The number of samples of a step, within which prefixes are shared."""
    computed_share: float | None
    """The share of tokens that an epoch computes, as each shared prefix is computed once; None if it is not shared."""
    samples: list[ShownSample]
    """The first sample, one of median length and the longest within the limit."""


class TokenCollector:
    """Collects the samples of a file, with a few integers for each in memory.

    shares_prefixes: whether training computes shared prefixes once; global_batch_size: samples of a step; seed: of the
    order in which they come.
    """

    def __init__(
        self, encoder: SampleEncoder[Sample], *, shares_prefixes: bool, global_batch_size: int, seed: int = 1234
    ) -> None:
        self._encoder = encoder
        self._shares_prefixes, self._size, self._seed = shares_prefixes, global_batch_size, seed
        self._text_of = spelled_out(encoder.tokenizer)
        self._tokens, self._lengths = array("i"), array("q")
        self._starts, self._stops = array("q"), array("q")
        self._longest = (-1, "")
        self._truncated = self._num_tokens = self._num_trained = 0

    def add(self, sample: Sample) -> None:
        """Add a sample, which may be too long."""
        length = len(sample.input_ids)
        self._lengths.append(length)
        if length > self._longest[0]:
            self._longest = (length, sample.source)
        if length > self._encoder.max_seq_length:
            return
        self._starts.append(len(self._tokens))
        self._tokens.extend(sample.input_ids)
        self._stops.append(len(self._tokens))
        self._truncated += sample.num_shortened > 0
        self._num_tokens += sample.num_input_tokens
        self._num_trained += sample.num_trained_tokens

    def places_to_show(self) -> list[int]:
        """Return the places, among all added samples, of the first one, one of median length and the longest."""
        kept = [place for place, length in enumerate(self._lengths) if length <= self._encoder.max_seq_length]
        by_length = sorted(kept, key=self._lengths.__getitem__)
        chosen = [kept[0], by_length[len(kept) // 2], by_length[-1]] if kept else []
        others = [place for place in kept[: 2 * SHOWN] if place not in chosen]
        return list(dict.fromkeys([*chosen, *others]))[:SHOWN]

    def statistics(self, shown: Sequence[Sample]) -> TokenStatistics:
        """Return the statistics of at least one added sample; shown: samples to show in text."""
        return TokenStatistics(
            limit=self._encoder.max_seq_length,
            limit_advice=LIMIT_FIXES[self._encoder.limited_by],
            lengths=Quantiles.of(self._lengths),
            histogram=bins(self._lengths),
            too_long=len(self._lengths) - len(self._starts),
            longest=self._longest[1],
            truncated=self._truncated,
            tokens=self._num_tokens,
            trained_tokens=self._num_trained if self._encoder.for_train else None,
            global_batch_size=self._size,
            computed_share=self._computed_share() if self._shares_prefixes and len(self._starts) else None,
            samples=[ShownSample.of(sample, self._text_of, is_trained=self._encoder.for_train) for sample in shown],
        )

    def _computed_share(self) -> float:
        """Return the share of tokens in an epoch whose batches compute each shared prefix once."""
        computed = sum(tree.num_tokens() for batch in self._batches() for tree in prefix_trees(batch))
        return computed / max(1, len(self._tokens))

    def _batches(self) -> Iterator[list[list[int]]]:
        """Yield the token ids of each global batch of an epoch."""
        import torch

        tokens = np.frombuffer(self._tokens, np.int32) if len(self._tokens) else np.zeros(0, np.int32)
        starts, stops = np.frombuffer(self._starts, np.int64), np.frombuffer(self._stops, np.int64)
        order = PrefixOrder.of_array(tokens, starts, stops)
        places = order.shuffled(torch.Generator().manual_seed(self._seed), self._size)
        for first in range(0, len(places), self._size):
            yield [tokens[starts[place] : stops[place]].tolist() for place in places[first : first + self._size]]
