# SPDX-License-Identifier: Apache-2.0
"""Order of the samples in an epoch: samples with a common prefix come together.

It changes no result in expectation; a prefix that several samples share is then computed once (data.batching).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.mixture import MixedTasks
from nemo_launcher.data.prefix_tree import PrefixOrder
from nemo_launcher.data.samples import Sample


class PrefixShuffleSampler(Sampler[int]):
    """The order of samples in an epoch: samples with a common prefix stay together and are shuffled at each branch.

    Each sample occurs once per epoch, at any position, so a global batch has the same expected content as under a plain
    shuffle. Samples that the end of a global batch would separate are swapped with later ones if that helps. The order
    depends only on the seed, the epoch and global_batch_size. The next pass omits its first `skip` samples, so that a
    resumed run continues where the interrupted one stopped. A mixture replaces "once per epoch" by its own counts.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        shuffle: bool,
        share_prefix: bool,
        seed: int,
        global_batch_size: int,
        mixture: MixedTasks | None = None,
    ) -> None:
        self.prefixes = _prefix_order(samples) if shuffle and share_prefix else None
        self.num_samples = len(samples)
        self.shuffle = shuffle
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.mixture = mixture
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (0-based) of the next pass; Lightning calls this."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the order of the whole epoch."""
        if not self.shuffle:
            return list(range(self.num_samples))
        if self.mixture is not None:
            return self.mixture.order(self.epoch, self.prefixes, self.seed, self.global_batch_size)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.prefixes is not None:
            return self.prefixes.shuffled(generator, self.global_batch_size)
        return torch.randperm(self.num_samples, generator=generator).tolist()

    def __iter__(self) -> Iterator[int]:
        order, self.skip = self.order()[self.skip :], 0
        return iter(order)

    def __len__(self) -> int:
        return self.num_samples


def _prefix_order(samples: Sequence[Sample]) -> PrefixOrder:
    """Return the common prefixes of samples; a cache stores them."""
    if isinstance(samples, SampleCache) and samples.prefixes is not None:
        return samples.prefixes
    return PrefixOrder.of([sample.input_ids for sample in samples])
