# SPDX-License-Identifier: Apache-2.0
"""Our side of benchmarks/training.py: the engine's batches, steps and adapters, as in a training job."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler

from benchmarks.adapter_weights import gradients_of, start_alike
from benchmarks.side import memory, serve
from nemo_launcher import __version__
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, PrefixShuffleSampler
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.squad_format import read_questions
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.compilation import set_torch_compile
from nemo_launcher.runtime.precision import dtype_of
from nemo_launcher.training.step import forward_backward
from nemo_launcher.training.workers import layout_for

TEMPLATE = TaskTemplate(
    taskname="squad",
    prompt_template="context: {context} question: {question} answer: {answer}",
    answer_only_loss=True,
    answer_field="answer",
)
# Our IA3 vectors by PEFT's names: kind of vector, and for T5 the attention.
_VECTORS = {"key_infused_adapter": "k", "value_infused_adapter": "v", "mlp_infused_adapter": "ff"}
ADAPTER = {"type": "parallel_adapter", "adapter_dim": 16, "adapter_dropout": 0.0, "norm_position": "pre"}
ADAPTER |= {"norm_type": "mixedfusedlayernorm", "column_init_method": "xavier", "row_init_method": "zero"}


class Ours:
    """The frozen base with adapters, and the samples."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        self.base = load_base(options["base"], dtype=dtype_of({"fp32": "32", "bf16": "bf16"}[options["dtype"]], ""))
        self.config = {"seed": 1234} | ({"adapter_tuning": ADAPTER} if options["method"] == "adapter" else {})
        self.adapters = AdapterSet(self.base.model, self.base.shape, self.config)
        self.adapters.train()
        set_torch_compile(self.base.model, options.get("torch_compile", False))
        self.optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def encode(self) -> dict[str, Any]:
        """Tokenize the questions and save them for the peer."""
        encoder = self.base.family.prompt_encoder(self.base.tokenizer, self.base.shape, PromptSettings.read({}))
        questions = read_questions(Path(self.options["data"]))[: self.options["samples"]]
        records = [{"context": q.context, "question": q.question, "answer": q.answers[0]} for q in questions]
        self.samples = [encoder.encode(record, TEMPLATE) for record in records]
        fields = ("input_ids", "answer_start") if self.options["family"] == "gpt" else ("input_ids", "decoder_ids")
        rows = [{field: getattr(sample, field) for field in fields} for sample in self.samples]
        Path(self.options["samples_path"]).write_text(json.dumps(rows), encoding="utf-8")
        lengths = [len(sample.input_ids) for sample in self.samples]
        return {"samples": len(rows), "mean_length": sum(lengths) / len(lengths), "max_length": max(lengths)}

    def train(self, mode: str, count: int | None) -> dict[str, Any]:
        """Train on the first samples (None: all), once, in global batches."""
        samples = self.samples[:count]
        collate = self._collate()
        start = time.perf_counter()
        size = self.options["global_batch"]
        sampler = PrefixShuffleSampler(
            samples, shuffle=True, share_prefix=self.base.family.shares_prefixes, seed=1, global_batch_size=size
        )
        for indices in BatchSampler(sampler, size, drop_last=False):
            self.optimizer.zero_grad()
            batch = collate([samples[index] for index in indices])
            forward_backward(self.base.model, batch, backward=True)
            self.adapters.clip_gradients(1.0)
            self.optimizer.step()
        return {"seconds_per_sample": (time.perf_counter() - start) / len(samples)}

    def _collate(self) -> Collate:
        """Return the Collate of a training job."""
        layout = layout_for(self.options["batch"], self.base.device, self.base.dtype)
        family = self.base.family
        return Collate(layout, family.shares_prefixes, pack=family.pack, keep_groups=True)

    def gradients(self, path: str) -> dict[str, Any]:
        """Save the gradients of the first samples' loss under the peer's names."""
        self.optimizer.zero_grad()
        if self.options["method"] == "adapter":
            start_alike(self._bottlenecks())
        samples = self.samples[: self.options["batch"]]
        collate = self._collate()
        loss = forward_backward(self.base.model, collate(samples), backward=True)
        ia3 = self.options["method"] == "ia3"
        torch.save(self._named_gradients() if ia3 else gradients_of(self._bottlenecks()), path)
        return {"loss": float(loss)}

    def _bottlenecks(self) -> Iterator[tuple[str, dict[str, torch.nn.Parameter]]]:
        """Yield place and parts of each adapter (benchmarks.adapter_weights)."""
        for key, adapter in self.adapters.adapters.items():
            layer, _, name = key.rpartition("layers.")[2].partition(":")
            parts = dict(adapter.named_parameters())
            named = {"down": "linear_in.weight", "up": "linear_out.weight"}
            named |= {"norm_weight": "layer_norm.weight", "norm_bias": "layer_norm.bias"}
            place = {"adapter_1": "attention", "adapter_2": "mlp"}[name]
            yield f"{layer}.{place}", {part: parts[path] for part, path in named.items()}

    def _named_gradients(self) -> dict[str, torch.Tensor]:
        found = {}
        for key, adapter in self.adapters.adapters.items():
            path, name = key.rsplit(":", 1)
            layer = re.search(r"layers\.(\d+)", path)
            stack = f"{'decoder' if 'decoder' in path else 'encoder'}." if self.options["family"] == "t5" else ""
            cross = "cross." if "inter" in key else ""
            (parameter,) = adapter.parameters()
            assert layer is not None
            assert parameter.grad is not None
            found[f"{stack}{layer[1]}.{cross}{_VECTORS[name.removeprefix('inter_')]}"] = (
                parameter.grad.flatten().float()
            )
        return found

    def compare(self, path: str, other: str) -> dict[str, Any]:
        """Return the largest difference of two gradients, relative to the largest gradient."""
        mine, theirs = (torch.load(name, weights_only=True) for name in (path, other))
        assert mine.keys() == theirs.keys()
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        return {"difference": max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) / largest}

    def versions(self) -> dict[str, Any]:
        return {"nemo_launcher": __version__, "torch": torch.__version__}


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    ours = Ours(options)
    names = ("encode", "train", "gradients", "compare", "versions")
    return {"memory": memory} | {name: getattr(ours, name) for name in names}


if __name__ == "__main__":
    serve(commands_of)
