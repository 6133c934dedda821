# SPDX-License-Identifier: Apache-2.0
"""The peer's side of the training benchmarks: transformers with PEFT, AdapterHub's bottleneck adapters, or hooks."""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from benchmarks import peer_hooks
from benchmarks.adapter_weights import Part, gradients_of, start_alike, whole
from benchmarks.batches import batches_of, padded_tokens
from benchmarks.side import memory, serve

Places = Iterator[tuple[str, dict[str, Part]]]


class Peer:
    """A Hugging Face model with the peer's adapters, trained with the loop from its documentation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        self.is_t5 = options["family"] == "t5"
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options["dtype"]]
        auto = transformers.AutoModelForSeq2SeqLM if self.is_t5 else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(options["hf"], dtype=dtype, attn_implementation=None if self.is_t5 else "sdpa")
        self.model = {"peft": self._with_peft, "adapters": self._with_adapterhub, "plain": self._with_hooks}[
            options["peer"]
        ](model)
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
        self._samples: list[dict[str, list[int]]] | None = None

    def _with_peft(self, model: Any) -> Any:
        import peft

        self.places = {"ia3": self._peft_vectors, "lora": self._peft_lora}[self.options["method"]]
        task = peft.TaskType.SEQ_2_SEQ_LM if self.is_t5 else peft.TaskType.CAUSAL_LM
        if self.options["method"] == "lora":
            modules = ["q", "k", "v"] if self.is_t5 else ["q_proj", "k_proj", "v_proj"]
            rank = peer_hooks.WIDTH
            return peft.get_peft_model(
                model, peft.LoraConfig(task_type=task, r=rank, lora_alpha=rank, target_modules=modules)
            )
        modules = ["k", "v", "wo"] if self.is_t5 else ["k_proj", "v_proj", "down_proj"]
        return peft.get_peft_model(
            model, peft.IA3Config(task_type=task, target_modules=modules, feedforward_modules=modules[2:])
        )

    def _with_adapterhub(self, model: Any) -> Any:
        import adapters

        self.places = self._adapterhub_bottlenecks
        adapters.init(model)
        # like NeMo's adapters, with a norm first and additional biases, which start at zero
        config = adapters.DoubleSeqBnConfig(
            reduction_factor=model.config.hidden_size / 16, non_linearity="swish", ln_before=True
        )
        model.add_adapter("squad", config=config)
        model.train_adapter("squad")
        return model

    def _with_hooks(self, model: Any) -> Any:
        attached = peer_hooks.attach(model, self.options["method"])
        self.places = lambda: peer_hooks.places(attached)
        return model

    def _adapterhub_bottlenecks(self) -> Places:
        for name, module in self.model.named_modules():
            found = re.search(r"layers\.(\d+)\.(attention|output)_adapters\.adapters\.squad$", name)
            if found:
                place = {"attention": "attention", "output": "mlp"}[found[2]]
                norm = module.adapter_norm_before
                parts = {"down": module.adapter_down[1].weight, "up": module.adapter_up.weight}
                yield f"{found[1]}.{place}", whole(parts | {"norm_weight": norm.weight, "norm_bias": norm.bias})

    def _peft_vectors(self) -> Places:
        for place, name, module in self._peft_layers():
            (vector,) = module.ia3_l.values()
            yield f"{place}{name}", {"scale": Part([vector])}

    def _peft_lora(self) -> Places:
        """Yield q, k and v of one input together, as they are ours; the first matrices are copies of one."""
        found: dict[str, list[Any]] = {}
        for place, name, module in self._peft_layers():
            kind = ("q" if name == "q" else "kv") if "cross" in place else "qkv"
            found.setdefault(f"{place}{kind}", []).append(module)
        for place, modules in found.items():
            down = [module.lora_A["default"].weight for module in modules]
            up = [module.lora_B["default"].weight for module in modules]
            yield place, {"down": Part(down, copies=True), "up": Part(up)}

    def _peft_layers(self) -> Iterator[tuple[str, str, Any]]:
        return (found for found in peer_hooks.projections(self.model) if hasattr(found[2], "base_layer"))

    @property
    def samples(self) -> list[dict[str, list[int]]]:
        """Return the samples that our side has tokenized."""
        if self._samples is None:
            self._samples = json.loads(Path(self.options["samples_path"]).read_text(encoding="utf-8"))
        return self._samples

    def train(self, mode: str, part: int | None = None) -> dict[str, Any]:
        """Train `options.epochs` times on the batches of at least `part` samples (None: all).

        mode: default, best or plain (benchmarks.batches); best computes the logits of the answers only. The time of a
        part is scaled to all samples by the number of padded tokens.
        """
        lengths, epochs = [len(sample["input_ids"]) for sample in self.samples], self.options.get("epochs", 1)
        every, measured = (batches_of(lengths, self.options["batch"], mode, count) for count in (None, part))
        start = time.perf_counter()
        for batch in measured * epochs:
            self._step([self.samples[index] for index in batch], mode)
        seconds = time.perf_counter() - start
        seconds *= padded_tokens(every, lengths) / padded_tokens(measured, lengths)
        return {"seconds_per_sample": seconds / len(lengths) / epochs, "samples": sum(map(len, measured)) * epochs}

    def _step(self, samples: Sequence[Any], mode: str) -> None:
        loss = self._loss(samples, answers_only=mode == "best")
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def warm_up(self) -> dict[str, Any]:
        """Train on the shortest sample twice; return the seconds that the first time takes in addition."""
        shortest = min(self.samples, key=lambda sample: len(sample["input_ids"]))
        times = [time.perf_counter()]
        for _ in range(2):
            self._step([shortest], "best")
            times.append(time.perf_counter())
        return {"cold_seconds": max(0.0, times[1] - times[0] - (times[2] - times[1]))}

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
        """Set both sides' initial weights and save the gradients of the first samples' loss under common names."""
        self.optimizer.zero_grad()
        start_alike(self.places())
        self.model.eval()  # T5's dropout would differ between the sides
        loss = self._loss(self.samples[: self.options["batch"]])
        loss.backward()
        self.model.train()
        torch.save(gradients_of(self.places()), path)
        self.optimizer.zero_grad()
        return {"loss": float(loss)}

    def versions(self) -> dict[str, Any]:
        packages = ["torch", "transformers", *({self.options["peer"]} - {"plain"})]
        return {package: importlib.metadata.version(package) for package in packages}


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    peer = Peer(options)
    return {"memory": memory} | {name: getattr(peer, name) for name in ("train", "warm_up", "gradients", "versions")}


if __name__ == "__main__":
    serve(commands_of)
