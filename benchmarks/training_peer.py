# SPDX-License-Identifier: Apache-2.0
"""The peer's side of benchmarks/training.py: transformers with PEFT's IA3 or AdapterHub's bottleneck adapters."""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from benchmarks.adapter_weights import gradients_of, start_alike
from benchmarks.side import memory, serve


class Peer:
    """A Hugging Face model with the peer's adapters, trained with the loop from its documentation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        self.is_t5 = options["family"] == "t5"
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options["dtype"]]
        auto = transformers.AutoModelForSeq2SeqLM if self.is_t5 else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(options["hf"], dtype=dtype, attn_implementation=None if self.is_t5 else "sdpa")
        self.model = {"peft": self._with_peft, "adapters": self._with_adapterhub}[options["peer"]](model)
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
        self._samples: list[dict[str, list[int]]] | None = None

    def _with_peft(self, model: Any) -> Any:
        import peft

        modules = ["k", "v", "wo"] if self.is_t5 else ["k_proj", "v_proj", "down_proj"]
        task = peft.TaskType.SEQ_2_SEQ_LM if self.is_t5 else peft.TaskType.CAUSAL_LM
        return peft.get_peft_model(
            model, peft.IA3Config(task_type=task, target_modules=modules, feedforward_modules=modules[2:])
        )

    def _with_adapterhub(self, model: Any) -> Any:
        import adapters

        adapters.init(model)
        # like NeMo's adapters, with a norm first and additional biases, which start at zero
        config = adapters.DoubleSeqBnConfig(
            reduction_factor=model.config.hidden_size / 16, non_linearity="swish", ln_before=True
        )
        model.add_adapter("squad", config=config)
        model.train_adapter("squad")
        return model

    def _bottlenecks(self) -> Iterator[tuple[str, dict[str, torch.nn.Parameter]]]:
        """Yield place and parts of each of AdapterHub's adapters (benchmarks.adapter_weights)."""
        for name, module in self.model.named_modules():
            found = re.search(r"layers\.(\d+)\.(attention|output)_adapters\.adapters\.squad$", name)
            if found:
                place = {"attention": "attention", "output": "mlp"}[found[2]]
                norm = module.adapter_norm_before
                parts = {"down": module.adapter_down[1].weight, "up": module.adapter_up.weight}
                yield f"{found[1]}.{place}", parts | {"norm_weight": norm.weight, "norm_bias": norm.bias}

    @property
    def samples(self) -> list[dict[str, list[int]]]:
        """Return the samples that our side has tokenized."""
        if self._samples is None:
            self._samples = json.loads(Path(self.options["samples_path"]).read_text(encoding="utf-8"))
        return self._samples

    def train(self, mode: str, count: int | None) -> dict[str, Any]:
        """Train on the first samples (None: all), once. mode: default (random batches) or best (sorted by length)."""
        samples = self.samples[:count]
        start = time.perf_counter()
        order = list(range(len(samples)))
        random.Random(1).shuffle(order)
        if mode == "best":
            order.sort(key=lambda index: len(samples[index]["input_ids"]))
        size = self.options["batch"]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        random.Random(2).shuffle(batches)
        for batch in batches:
            loss = self._loss([samples[index] for index in batch], answers_only=mode == "best")
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"seconds_per_sample": (time.perf_counter() - start) / len(samples)}

    def _loss(self, samples: Sequence[Any], *, answers_only: bool = False) -> torch.Tensor:
        """Return the mean loss over the answers of a padded batch."""
        inputs = _padded([sample["input_ids"] for sample in samples], 0)
        mask = _padded([[1] * len(sample["input_ids"]) for sample in samples], 0)
        if self.is_t5:
            decoder = _padded([sample["decoder_ids"][:-1] for sample in samples], 0)
            labels = _padded([sample["decoder_ids"][1:] for sample in samples], -100)
            output = self.model(input_ids=inputs, attention_mask=mask, decoder_input_ids=decoder, labels=labels)
            return output.loss
        labels = _padded([[-100] * s["answer_start"] + s["input_ids"][s["answer_start"] :] for s in samples], -100)
        if not answers_only:
            return self.model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        keep = inputs.size(1) - min(sample["answer_start"] for sample in samples) + 1
        logits = self.model(input_ids=inputs, attention_mask=mask, logits_to_keep=keep).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, -keep + 1 :].flatten())

    def gradients(self, path: str) -> dict[str, Any]:
        """Save the gradients of the first samples' loss by layer and vector names."""
        self.optimizer.zero_grad()
        if self.options["peer"] == "adapters":
            start_alike(self._bottlenecks())
        self.model.eval()  # T5's dropout would differ between the sides
        loss = self._loss(self.samples[: self.options["batch"]])
        loss.backward()
        self.model.train()
        found = gradients_of(self._bottlenecks())
        for name, parameter in self.model.named_parameters():
            if "ia3_l" in name:
                found[self._name(name)] = parameter.grad.flatten().float()
        torch.save(found, path)
        self.optimizer.zero_grad()
        return {"loss": float(loss)}

    def _name(self, name: str) -> str:
        layer = re.search(r"(?:layers|block)\.(\d+)\.", name)
        assert layer is not None
        stack = f"{'decoder' if 'decoder.' in name else 'encoder'}." if self.is_t5 else ""
        cross = "cross." if "EncDecAttention" in name else ""
        kind = re.search(r"\.(k|v)(?:_proj)?\.", name)
        return f"{stack}{layer[1]}.{cross}{kind[1] if kind else 'ff'}"

    def versions(self) -> dict[str, Any]:
        packages = ("torch", "transformers", self.options["peer"])
        return {package: importlib.metadata.version(package) for package in packages}


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    peer = Peer(options)
    return {"memory": memory} | {name: getattr(peer, name) for name in ("train", "gradients", "versions")}


if __name__ == "__main__":
    serve(commands_of)
