# SPDX-License-Identifier: Apache-2.0
"""Our side of the training benchmarks: the engine's batches, steps and adapters, as in a training job."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from nemo_launcher.runtime.startup import quick_imports

with quick_imports():  # as in a job
    import torch
    from torch.utils.data import BatchSampler

    from benchmarks.adapter_weights import Part, gradients_of, largest_difference, rows_by_group, start_alike, whole
    from benchmarks.records import Records
    from benchmarks.side import memory, serve
    from nemo_launcher import __version__
    from nemo_launcher.adapters.injection import AdapterSet
    from nemo_launcher.config.traversal import Traversal
    from nemo_launcher.data.batching import Collate
    from nemo_launcher.data.layout import Layout
    from nemo_launcher.data.prompt_encoder import PromptSettings
    from nemo_launcher.data.sample_order import PrefixShuffleSampler
    from nemo_launcher.data.samples import Sample
    from nemo_launcher.families.base import load_base
    from nemo_launcher.megatron.compilation import set_torch_compile
    from nemo_launcher.runtime.precision import dtype_of
    from nemo_launcher.training.base_setup import tokens_to_train
    from nemo_launcher.training.calibration import calibrated_layout
    from nemo_launcher.training.step import forward_backward
    from nemo_launcher.training.workers import layout_for

DTYPES = {"fp32": "32", "bf16": "bf16"}
_BOTTLENECK = {"adapter_dim": 16, "adapter_dropout": 0.0, "norm_position": "pre"}
ADAPTER_TUNING: dict[str, dict[str, Any]] = {
    "ia3": {},
    "adapter": {"type": "parallel_adapter", "column_init_method": "xavier", "row_init_method": "zero"} | _BOTTLENECK,
    "linear_adapter": {"type": "linear_adapter"} | _BOTTLENECK,
    "lora": {"type": "lora", "adapter_dim": 16, "alpha": 16.0, "target_modules": ["attention_qkv"]},
}
"""The `adapter_tuning` block of each method."""

# Our adapters' names -> their kind in benchmarks.adapter_weights
_KINDS = {"key_infused_adapter": "k", "value_infused_adapter": "v", "mlp_infused_adapter": "ff"}
_KINDS |= {"adapter_1": "attention", "adapter_2": "mlp"}
_KINDS |= {"lora_kqv_adapter": "qkv", "lora_q_adapter": "q", "lora_kv_adapter": "kv"}
# Our parameters' names -> those of the parts
_PARTS = {"scalers": "scale", "linear_in.weight": "down", "linear_out.weight": "up"}
_PARTS |= {"layer_norm.weight": "norm_weight", "layer_norm.bias": "norm_bias"}
_PARTS |= {"module.0.weight": "norm_weight", "module.0.bias": "norm_bias"}
_PARTS |= {"module.1.weight": "down", "module.3.weight": "up"}


class Ours:
    """The frozen base with adapters, and the samples."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        self.base = load_base(options["base"], dtype=dtype_of(DTYPES[options["dtype"]], ""))
        block = ADAPTER_TUNING[options["method"]]
        self.config = {"seed": 1234} | ({"adapter_tuning": block} if block else {})
        self.adapters = AdapterSet(self.base.model, self.base.shape, self.config)
        self.adapters.train()
        set_torch_compile(self.base.model, options.get("torch_compile", False))
        self.optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        self.samples: list[Sample] = []
        self._calibrated: Layout | None = None

    def encode(self) -> dict[str, Any]:
        """Tokenize the records, at most `options.records`, and save the samples for the peer.

        Records beyond the base's context are dropped.
        """
        encoder = self.base.family.prompt_encoder(self.base.tokenizer, self.base.shape, PromptSettings.read({}))
        given = Records.load(self.options["records_path"])
        self.samples, dropped = [], 0
        for record in given.records:
            sample = encoder.encode(dict(record), given.template)
            if len(sample.input_ids) > encoder.max_seq_length or encoder.sample_problems(sample):
                dropped += 1
            else:
                self.samples.append(sample)
            if len(self.samples) == self.options.get("records"):
                break
        fields = ("input_ids", "answer_start") if self.options["family"] == "gpt" else ("input_ids", "decoder_ids")
        rows = [{field: getattr(sample, field) for field in fields} for sample in self.samples]
        Path(self.options["samples_path"]).write_text(json.dumps(rows), encoding="utf-8")
        return {"dropped": dropped, **_counts(self.samples)}

    def train(self, mode: str = "ours", part: int | None = None, **settings: Any) -> dict[str, Any]:
        """Train on the first `part` samples (None: all), `options.epochs` times, in global batches.

        mode: always ours. settings: of `model.data`, share_prefix, pack, layout and traversal.
        """
        samples, collate = self.samples[:part], self._collate(**settings)
        epochs = self.options.get("epochs", 1)
        start = time.perf_counter()
        for epoch in range(epochs):
            self._epoch(samples, epoch, collate)
        return {"seconds_per_sample": (time.perf_counter() - start) / len(samples) / epochs}

    def _epoch(self, samples: Sequence[Sample], epoch: int, collate: Collate) -> None:
        size = self.options["global_batch"]
        sampler = PrefixShuffleSampler(
            samples, shuffle=True, share_prefix=collate.share_prefix, seed=1, global_batch_size=size
        )
        sampler.set_epoch(epoch)
        for indices in BatchSampler(sampler, size, drop_last=False):
            self.optimizer.zero_grad()
            batch = collate([samples[index] for index in indices])
            forward_backward(self.base.model, batch, backward=True)
            self.adapters.clip_gradients(1.0)
            self.optimizer.step()

    def warm_up(self) -> dict[str, Any]:
        """Calibrate the layout, and train on the shortest sample twice.

        Returns the seconds of the calibration, and those that the first time takes more than the second.
        """
        shortest = min(self.samples, key=lambda sample: len(sample.input_ids))
        times = [time.perf_counter()]
        collate = self._collate()
        times.append(time.perf_counter())
        for _ in range(2):
            self._epoch([shortest], 0, collate)
            times.append(time.perf_counter())
        calibration, cold, warm = (after - before for before, after in pairwise(times))
        return {"calibration_seconds": calibration, "cold_seconds": max(0.0, cold - warm)}

    def _collate(
        self, *, share_prefix: bool = True, pack: bool = True, layout: str = "auto", traversal: Traversal = "auto"
    ) -> Collate:
        """Return the Collate of a training job with these settings of `model.data`."""
        family = self.base.family
        stacks = list(family.stacks(self.base.model, self.base.shape))
        chosen = layout_for(self.options["batch"], self.base.device, self.base.dtype, len(stacks))
        if layout == "auto":
            if self._calibrated is None:
                self._calibrated = calibrated_layout(
                    self.base, chosen, self.adapters.method.name, tokens_to_train(self.samples, 64, -1, 1)
                )
            chosen = self._calibrated
        share = family.shares_prefixes and share_prefix
        return Collate(
            chosen,
            share,
            pack=family.pack,
            keep_groups=pack,
            traversal=traversal if share and pack and family.pack_rows else "breadth",
            pack_rows=family.pack_rows,
        )

    def layout(self, **settings: Any) -> dict[str, Any]:
        """Return how many tokens one epoch computes in how many micro-batches, of how many that the samples have.

        settings: as of `train`.
        """
        collate = self._collate(**settings)
        size = self.options["global_batch"]
        batches = [collate(self.samples[first : first + size]) for first in range(0, len(self.samples), size)]
        return {
            "computed_tokens": sum(batch.computed_tokens for batch in batches),
            "sample_tokens": sum(batch.sample_tokens for batch in batches),
            "rows": sum(len(batch.micro_batches) for batch in batches),
        }

    def gradients(self, path: str) -> dict[str, Any]:
        """Set both sides' initial weights and save the gradients of the first samples' loss under common names."""
        self.optimizer.zero_grad()
        start_alike(self.places())
        samples = self.samples[: self.options["batch"]]
        loss = forward_backward(self.base.model, self._collate()(samples), backward=True)
        torch.save(gradients_of(self.places()), path)
        return {"loss": float(loss)}

    def places(self) -> Iterator[tuple[str, dict[str, Part]]]:
        """Yield the place and the parts of each adapter (benchmarks.adapter_weights)."""
        for key, adapter in self.adapters.adapters.items():
            path, _, name = key.rpartition(":")
            layer = re.search(r"layers\.(\d+)", path)
            assert layer is not None
            stack = f"{'decoder' if 'decoder' in path else 'encoder'}." if self.options["family"] == "t5" else ""
            cross = "cross." if "inter" in key else ""
            kind = _KINDS[name.removeprefix("inter_")]
            parts = whole({_PARTS[name]: parameter for name, parameter in adapter.named_parameters()})
            if kind in ("qkv", "kv"):
                parts["up"] = Part(parts["up"].parameters, order=self._row_order(kind, stack))
            yield f"{stack}{layer[1]}.{cross}{kind}", parts

    def _row_order(self, kind: str, stack: str) -> torch.Tensor:
        """Return the order in which a projection holds the rows of queries, keys and values: by group of heads."""
        shapes = self.base.family.stack_shapes(self.base.shape)
        sizes = shapes[stack.removesuffix(".") or next(iter(shapes))]
        keys = sizes.num_query_groups * sizes.kv_channels
        rows = [keys, keys] if kind == "kv" else [sizes.num_attention_heads * sizes.kv_channels, keys, keys]
        return rows_by_group(rows, sizes.num_query_groups)

    def compare(self, path: str, other: str) -> dict[str, Any]:
        """Return the largest difference of two gradients, relative to the largest gradient."""
        mine, theirs = (torch.load(name, weights_only=True) for name in (path, other))
        return {"difference": largest_difference(mine, theirs)}

    def versions(self) -> dict[str, Any]:
        return {"nemo_launcher": __version__, "torch": torch.__version__}


def _counts(samples: list[Sample]) -> dict[str, Any]:
    """Return the number of samples, and their lengths in tokens."""
    lengths = [len(sample.input_ids) for sample in samples]
    trained = [sample.num_trained_tokens for sample in samples]
    if not samples:
        return {"samples": 0}
    common = next(
        (n for n, ids in enumerate(zip(*(sample.input_ids for sample in samples), strict=False)) if len({*ids}) > 1),
        min(lengths),
    )
    return {
        "samples": len(samples),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": max(lengths),
        "answer_tokens": sum(trained) / len(trained),
        "common_prefix": common,
    }


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    ours = Ours(options)
    names = ("encode", "train", "warm_up", "layout", "gradients", "compare", "versions")
    return {"memory": memory} | {name: getattr(ours, name) for name in names}


if __name__ == "__main__":
    serve(commands_of)
