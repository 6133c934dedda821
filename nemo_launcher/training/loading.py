# SPDX-License-Identifier: Apache-2.0
"""Loading of an epoch's global batches from samples, starting at any position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch.utils.data import BatchSampler, DataLoader, Dataset

from nemo_launcher.config.sections.learning import Ia3Model, Mixture
from nemo_launcher.config.traversal import Traversal, allows_depth
from nemo_launcher.data.batching import Collate, CollateNumbered
from nemo_launcher.data.cache import cache_folders
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.mixture import MixedTasks
from nemo_launcher.data.sample_order import PrefixShuffleSampler
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.families.family import AnyFamily
from nemo_launcher.megatron import parallel
from nemo_launcher.runtime import ranks
from nemo_launcher.training.data_workers import start_worker
from nemo_launcher.training.fitting import Fitting
from nemo_launcher.training.hidden_cache import HiddenCache
from nemo_launcher.training.hidden_states import CollateStored, StoredHidden, store_hidden


class _Samples(Dataset[object]):
    """A map-style dataset over a sequence of samples, which may be a memory-mapped cache, with their numbers."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[int, Sample]:
        return number, self.samples[number]


def make_loaders(
    base: Base, settings: Ia3Model, layout: Layout, train: Sequence[Sample], validation: Sequence[Sample], results: Path
) -> list[BatchLoader]:
    """Return the loaders of the training and validation batches; all ranks must call this.

    settings: the stage's `model` section; results: the job's results folder. With model.data.cache_hidden, the hidden
    states of both are stored first (hidden_states.check_can_store). Raises UserError like `store_hidden`.
    """
    data = settings.data
    stored: list[StoredHidden | None] = [None, None]
    if data.cache_hidden:
        collate = make_collate(settings, base.family, layout)
        sets = (train, data.train_ds), (validation, data.validation_ds)
        for number, (samples, paths) in enumerate(sets):
            cache = HiddenCache(cache_folders(data.cache_dir, paths[0], results), paths)
            stored[number] = store_hidden(base, samples, collate, cache, size=settings.global_batch_size)
    loader = partial(BatchLoader, settings=settings, family=base.family, layout=layout)
    mixture = None if data.mixture is None else _mixed(settings, train, data.mixture)
    return [
        loader(train, stored=stored[0], shuffle=data.shuffle, drop_last=settings.nemo_compat, mixture=mixture),
        loader(validation, stored=stored[1], shuffle=False, drop_last=False),
    ]


def _mixed(settings: Ia3Model, samples: Sequence[Sample], mixture: Mixture) -> MixedTasks:
    """Return the mixture of the training data's tasks."""
    templates = [TaskTemplate.from_config(vars(template)) for template in settings.task_templates]
    mixed = MixedTasks.of(samples, settings.data.train_ds, templates, mixture, settings.data.fields)
    if ranks.rank() == 0:
        print(mixed, flush=True)
    return mixed


def make_collate(settings: Ia3Model, family: AnyFamily, layout: Layout) -> Collate:
    """Return what cuts and packs this rank's share of a global batch; layout: how it is cut."""
    data = settings.data
    return Collate(
        layout,
        family.shares_prefixes and data.share_prefix,
        parallel.data_rank(),
        parallel.data_size(),
        pack=family.pack,
        keep_groups=data.pack and not settings.nemo_compat,
        traversal=_traversal(settings, family),
        pack_rows=family.pack_rows,
    )


class BatchLoader(DataLoader[object]):
    """Loads this rank's share of each global batch (data.batching).

    settings: the stage's `model` section. layout: how a replica's samples are cut into micro-batches. stored: the
    samples' hidden states, from which the batches start. mixture: the tasks' shares.
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
        stored: StoredHidden | None = None,
        mixture: MixedTasks | None = None,
    ) -> None:
        data, size = settings.data, settings.global_batch_size
        self._global_batch_size = size
        share = family.shares_prefixes and data.share_prefix
        self._samples_in_order = PrefixShuffleSampler(
            samples,
            shuffle=shuffle,
            share_prefix=share,
            seed=settings.seed,
            global_batch_size=size,
            mixture=mixture,
        )
        processes = data.num_workers
        cut = make_collate(settings, family, layout)
        collate = CollateNumbered(cut) if stored is None else CollateStored(cut, stored, family.hidden)
        fills = layout.costs.fitting_tokens is not None
        self.fitting = Fitting(samples, collate, may_cut=not settings.nemo_compat, fills=fills)
        super().__init__(
            _Samples(samples),
            batch_sampler=BatchSampler(self._samples_in_order, size, drop_last),
            collate_fn=collate,
            num_workers=processes,
            worker_init_fn=start_worker,
            pin_memory=data.pin_memory and parallel.local_device().type == "cuda",
            persistent_workers=processes > 0,
        )

    def start_at(self, epoch: int, batch: int) -> None:
        """Start the next pass in `epoch` (0-based) at its global batch `batch`; later passes are complete."""
        self._samples_in_order.set_epoch(epoch)
        self._samples_in_order.skip = batch * self._global_batch_size


def _traversal(settings: Ia3Model, family: AnyFamily) -> Traversal:
    """Return the traversal that settings and family allow. Raises UserError if `depth` is impossible for the family."""
    wanted = settings.data.traversal
    if family.pack_rows is not None:
        return wanted if allows_depth(settings) else "breadth"
    if wanted == "depth":
        what = f"depth is impossible for a {family.title} model"
        raise UserError(Problem("model.data.traversal", what, "model.data.traversal=auto"))
    return "breadth"
