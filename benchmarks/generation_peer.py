# SPDX-License-Identifier: Apache-2.0
"""The peer's side of benchmarks/generation.py: transformers' generate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.batches import batches_of
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

    def generate(self, mode: str, part: int | None = None) -> dict[str, Any]:
        """Answer the prompts in batches of at least `part` (None: all); those that were left out have None for tokens.

        mode: default or best (benchmarks.batches), or peer_single: some of them alone.
        """
        rows = self._rows()
        prompts, size = rows["prompts"], self.options["batch"]
        if mode == "peer_single":
            prompts, size = [prompts[place] for place in rows["singles"]], 1
        batches = batches_of([len(prompt) for prompt in prompts], size, mode, part)
        tokens: list[list[int] | None] = [None] * len(prompts)
        start = time.perf_counter()
        for batch in batches:
            answers = self._answer([prompts[index] for index in batch], rows["eos_id"])
            for index, answer in zip(batch, answers, strict=True):
                tokens[index] = answer
        seconds = (time.perf_counter() - start) / sum(map(len, batches))
        return {"seconds_per_sample": seconds, "tokens": tokens, "samples": sum(map(len, batches))}

    def warm_up(self) -> dict[str, Any]:
        """Answer the shortest prompt twice; return the seconds that the first time takes in addition."""
        rows = self._rows()
        times = [time.perf_counter()]
        for _ in range(2):
            self._answer([min(rows["prompts"], key=len)], rows["eos_id"])
            times.append(time.perf_counter())
        return {"cold_seconds": max(0.0, times[1] - times[0] - (times[2] - times[1]))}

    def _rows(self) -> dict[str, Any]:
        """Return what our side has tokenized."""
        rows: dict[str, Any] = json.loads(Path(self.options["samples_path"]).read_text(encoding="utf-8"))
        return rows

    def _answer(self, prompts: list[list[int]], eos_id: int) -> list[list[int]]:
        """Return the new tokens of a batch, padded on the left, up to the end of the text."""
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
        rows = output[:, width:].tolist()
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    peer = Peer(options)
    return {"memory": memory, "generate": peer.generate, "warm_up": peer.warm_up}


if __name__ == "__main__":
    serve(commands_of)
