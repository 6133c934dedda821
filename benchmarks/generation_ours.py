# SPDX-License-Identifier: Apache-2.0
"""Our side of benchmarks/generation.py: the engine's own generation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_launcher.runtime.startup import quick_imports

with quick_imports():  # as in a job
    import torch

    from benchmarks.records import Records
    from benchmarks.side import memory, serve
    from nemo_launcher.data.prompt_encoder import PromptSettings
    from nemo_launcher.evaluation.generation import generate
    from nemo_launcher.evaluation.sampling import Sampling
    from nemo_launcher.families.base import load_base
    from nemo_launcher.runtime.precision import dtype_of


class Ours:
    """The frozen base and the prompts."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        torch.set_num_threads(options["threads"])
        self.base = load_base(options["base"], dtype=dtype_of({"fp32": "32", "bf16": "bf16"}[options["dtype"]], ""))

    def encode(self) -> dict[str, Any]:
        """Tokenize the prompts and save them for the peer."""
        settings, tokens = PromptSettings.read({}), self.options["tokens"]
        family = self.base.family
        encoder = family.prompt_encoder(self.base.tokenizer, self.base.shape, settings, tokens_to_generate=tokens)
        given = Records.load(self.options["records_path"])
        encoded = [encoder.encode(dict(record), given.template) for record in given.records]
        fits = [len(sample.input_ids) <= encoder.max_seq_length for sample in encoded]
        self.samples = [sample for sample, does in zip(encoded, fits, strict=True) if does]
        field = given.template.fields()[0]
        first_of_text = {str(one.record[field]): place for place, one in reversed([*enumerate(self.samples)])}
        self.singles = sorted(first_of_text.values())[: self.options["singles"]]
        rows = {
            "prompts": [sample.input_ids for sample in self.samples],
            "singles": self.singles,
            "eos_id": self.base.tokenizer.eos_id,
        }
        Path(self.options["samples_path"]).write_text(json.dumps(rows), encoding="utf-8")
        return {"samples": len(self.samples), "single_samples": len(self.singles), "dropped": fits.count(False)}

    def generate(self, mode: str) -> dict[str, Any]:
        """Answer all prompts (mode: ours), or some of them one after the other (ours_single)."""
        sampling = Sampling(tokens_to_generate=self.options["tokens"])
        start = time.perf_counter()
        if mode == "ours_single":
            tokens = [generate(self.base, [self.samples[place]], sampling, batch_size=1)[0] for place in self.singles]
        else:
            tokens = generate(self.base, self.samples, sampling, batch_size=self.options["our_batch"])
        return {"seconds_per_sample": (time.perf_counter() - start) / len(tokens), "tokens": tokens}

    def warm_up(self) -> dict[str, Any]:
        """Answer the shortest prompt twice; return the seconds that the first time takes in addition."""
        shortest = min(self.samples, key=lambda sample: len(sample.input_ids))
        times = [time.perf_counter()]
        for _ in range(2):
            generate(self.base, [shortest], Sampling(tokens_to_generate=self.options["tokens"]), batch_size=1)
            times.append(time.perf_counter())
        return {"cold_seconds": max(0.0, times[1] - times[0] - (times[2] - times[1]))}


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    ours = Ours(options)
    return {"memory": memory, "encode": ours.encode, "generate": ours.generate, "warm_up": ours.warm_up}


if __name__ == "__main__":
    serve(commands_of)
