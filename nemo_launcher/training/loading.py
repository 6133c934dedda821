# SPDX-License-Identifier: Apache-2.0
"""Loading of an epoch's global batches from samples, starting at any position."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import BatchSampler, DataLoader, Dataset

from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.batching import Collate, PrefixShuffleSampler
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.samples import Sample
from nemo_launcher.families.family import AnyFamily
from nemo_launcher.megatron import parallel


class _Samples(Dataset[Sample]):
    """A map-style dataset over a sequence of samples, which may be a memory-mapped cache."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Sample:
        return self.samples[number]


class BatchLoader(DataLoader[Sample]):
    """Loads this rank's share of each global batch (data.batching).

    settings: the stage's `model` section. layout: how a replica's samples are cut into micro-batches.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: Ia3Model,
        family: AnyFamily,
        layout: Layout,
        *,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        data, size = settings.data, settings.global_batch_size
        self._global_batch_size = size
        share = family.shares_prefixes and data.share_prefix
        self._samples_in_order = PrefixShuffleSampler(
            samples, shuffle=shuffle, share_prefix=share, seed=settings.seed, global_batch_size=size
        )
        processes = data.num_workers
        super().__init__(
            _Samples(samples),
            batch_sampler=BatchSampler(self._samples_in_order, size, drop_last),
            collate_fn=Collate(
                layout,
                share,
                parallel.data_rank(),
                parallel.data_size(),
                pack=family.pack,
                keep_groups=data.pack and not settings.nemo_compat,
            ),
            num_workers=processes,
            pin_memory=data.pin_memory and parallel.local_device().type == "cuda",
            persistent_workers=processes > 0,
        )

    def start_at(self, epoch: int, batch: int) -> None:
        """Start the next pass in `epoch` (0-based) at its global batch `batch`; later passes are complete."""
        self._samples_in_order.set_epoch(epoch)
        self._samples_in_order.skip = batch * self._global_batch_size
