# SPDX-License-Identifier: Apache-2.0
"""One training of the search of learning rates: the engine's batches, losses and optimizer, as in a job."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.learning_tasks import LearningTask, Record
from nemo_launcher.config.automatic import warmup_steps
from nemo_launcher.runtime.startup import quick_imports

with quick_imports():  # as in a job
    import torch
    from nemo.core.optim.lr_scheduler import CosineAnnealing

    from nemo_launcher.adapters.injection import AdapterSet
    from nemo_launcher.data.batching import Collate
    from nemo_launcher.data.prompt_encoder import PromptSettings
    from nemo_launcher.data.samples import Sample
    from nemo_launcher.data.templates import TaskTemplate
    from nemo_launcher.families.base import load_base
    from nemo_launcher.families.forward import cross_entropy, run_model
    from nemo_launcher.runtime.precision import dtype_of
    from nemo_launcher.training.step import forward_backward, step_seed
    from nemo_launcher.training.workers import layout_for

VALIDATION = 100
"""The number of validation records."""


class Trainee:
    """A frozen base with new adapters for each training, and a task's samples."""

    def __init__(
        self,
        base: Path,
        block: dict[str, Any],
        task: LearningTask,
        *,
        batch: int,
        threads: int,
        validation: int = VALIDATION,
    ) -> None:
        torch.set_num_threads(threads)
        self.base = load_base(str(base), dtype=dtype_of("32", ""))
        self.model_section = {"seed": 0} | ({"adapter_tuning": block} if block else {})
        self.adapters = AdapterSet(self.base.model, self.base.shape, self.model_section)
        self.batch = batch
        family = self.base.family
        layout = layout_for(
            batch, self.base.device, self.base.dtype, len(family.stacks(self.base.model, self.base.shape))
        )
        self.collate = Collate(layout, family.shares_prefixes, pack=family.pack, keep_groups=True)
        self.take(task, validation)

    def take(self, task: LearningTask, validation: int) -> None:
        """Train this task from now on, with so many validation records."""
        self.task = task
        self.validation = self._samples(task.make(validation, validation=True))

    def untrained(self) -> dict[str, Any]:
        """Return the accuracy and the loss of the base: new adapters change nothing."""
        self._start(0)
        return self._validate()

    def train(self, rate: float, *, steps: int, seed: int, epochs: int = 1) -> dict[str, Any]:
        """Train from new weights; return the accuracy and the loss on the validation records.

        steps: of all epochs, which they divide.
        """
        self._start(seed)
        own = self._samples(self.task.make(steps * self.batch // epochs, validation=False))
        draw = random.Random(seed)
        samples = [sample for _ in range(epochs) for sample in draw.sample(own, len(own))]
        parameters = self.adapters.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        schedule = CosineAnnealing(optimizer, max_steps=steps, warmup_steps=warmup_steps(steps), min_lr=0.0)
        for step in range(steps):
            optimizer.zero_grad()
            batch = self.collate(samples[step * self.batch : (step + 1) * self.batch])
            forward_backward(self.base.model, batch, backward=True, seed=step_seed(seed, step, sequence_parallel=False))
            self.adapters.clip_gradients(1.0)
            optimizer.step()
            schedule.step()
        return self._validate()

    def _start(self, seed: int) -> None:
        """Set the initial weights of a seed."""
        fresh = AdapterSet(self.base.model, self.base.shape, self.model_section | {"seed": seed}, attached=False)
        with torch.no_grad():
            for own, new in zip(self.adapters.parameters(), fresh.parameters(), strict=True):
                own.copy_(new)
        self.adapters.train()

    def _samples(self, records: list[Record]) -> list[Sample]:
        encoder = self.base.family.prompt_encoder(self.base.tokenizer, self.base.shape, PromptSettings.read({}))
        answer = self.task.template.rpartition("{")[2].removesuffix("}")
        section = {"taskname": self.task.name, "prompt_template": self.task.template, "answer_field": answer}
        template = TaskTemplate.from_config(section | {"answer_only_loss": True, "truncate_field": None})
        return [encoder.encode({"taskname": self.task.name, **record}, template) for record in records]

    @torch.inference_mode()
    def _validate(self) -> dict[str, Any]:
        self.adapters.train(False)
        right = ended = tokens = 0
        loss = 0.0
        for first in range(0, len(self.validation), 20):
            samples = self.validation[first : first + 20]
            batch = self.base.family.pack(samples, share_prefix=False)
            logits = self.base.model.logits_of(run_model(self.base.model, batch))
            loss += float(cross_entropy(logits, batch.labels).sum())
            tokens += batch.labels.numel()
            differs = logits.argmax(-1) != batch.labels
            ended += len(samples) - batch.label_samples[differs].unique().numel()
            differs &= batch.labels != self.base.tokenizer.eos_id
            right += len(samples) - batch.label_samples[differs].unique().numel()
        count = len(self.validation)
        return {"accuracy": ended / count, "begins_right": right / count, "val_loss": loss / tokens}
