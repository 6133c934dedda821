# SPDX-License-Identifier: Apache-2.0
"""The peer's side of benchmarks/generation.py: transformers' generate."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.side import memory, serve


class Peer:
    """A Hugging Face model that answers padded batches."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options["dtype"]]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            options["hf"], dtype=dtype, attn_implementation="sdpa"
        ).eval()

    def generate(self, mode: str) -> dict[str, Any]:
        """Answer all prompts. mode: default (random batches), best (sorted by length), peer_single (some, alone)."""
        rows = json.loads(Path(self.options["samples_path"]).read_text(encoding="utf-8"))
        prompts, eos_id = rows["prompts"], rows["eos_id"]
        if mode == "peer_single":
            prompts = [prompts[place] for place in rows["singles"]]
        start = time.perf_counter()
        order = list(range(len(prompts)))
        random.Random(1).shuffle(order)
        if mode == "best":
            order.sort(key=lambda index: len(prompts[index]))
        tokens: list[list[int]] = [[] for _ in prompts]
        size = 1 if mode == "peer_single" else self.options["batch"]
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            rows_of_batch = self._answer([prompts[index] for index in batch], eos_id)
            for index, row in zip(batch, rows_of_batch, strict=True):
                tokens[index] = row[: row.index(eos_id)] if eos_id in row else row
        return {"seconds_per_sample": (time.perf_counter() - start) / len(tokens), "tokens": tokens}

    def _answer(self, prompts: list[list[int]], eos_id: int) -> list[list[int]]:
        """Return the new tokens of a batch, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[eos_id] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.options["tokens"],
                do_sample=False,
                eos_token_id=eos_id,
                pad_token_id=eos_id,
            )
        new: list[list[int]] = output[:, width:].tolist()
        return new


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    return {"memory": memory, "generate": Peer(options).generate}


if __name__ == "__main__":
    serve(commands_of)
