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
        """Answer all prompts. mode: default (random batches) or best (sorted by length)."""
        rows = json.loads(Path(self.options["samples_path"]).read_text(encoding="utf-8"))
        prompts, eos_id = rows["prompts"], rows["eos_id"]
        start = time.perf_counter()
        order = list(range(len(prompts)))
        random.Random(1).shuffle(order)
        if mode == "best":
            order.sort(key=lambda index: len(prompts[index]))
        tokens: list[list[int]] = [[] for _ in prompts]
        size = self.options["batch"]
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            width = max(len(prompts[index]) for index in batch)
            ids = torch.tensor([[eos_id] * (width - len(prompts[index])) + prompts[index] for index in batch])
            mask = torch.tensor([[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in batch])
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=self.options["tokens"],
                    do_sample=False,
                    eos_token_id=eos_id,
                    pad_token_id=eos_id,
                )
            for index, row in zip(batch, output[:, width:].tolist(), strict=True):
                tokens[index] = row[: row.index(eos_id)] if eos_id in row else row
        return {"seconds_per_sample": (time.perf_counter() - start) / len(tokens), "tokens": tokens}


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return what can be asked for."""
    return {"memory": memory, "generate": Peer(options).generate}


if __name__ == "__main__":
    serve(commands_of)
