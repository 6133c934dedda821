# SPDX-License-Identifier: Apache-2.0
"""Differences between the engine and its references: `python benchmarks/parity.py [oracle] [parallel] [huggingface]`.

oracle: results of NVIDIA's own code, one row for each reference file in the folder `oracle` of the shared reference
files (tests/shared.py): the largest difference of logits, the relative difference of the loss, and the largest
difference of gradients relative to the largest gradient. parallel: the steps of
tests/integration/test_parallel_steps.py with two and four ranks, compared with one process. huggingface: logits of
converted random models, compared with transformers. Without arguments all three run; everything is fp32 on the CPU with
packed prompts.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.runtime.quiet import quiet_libraries
from tests import oracle, t5
from tests.checkpoint import test_hf_families
from tests.engine import gradients_of
from tests.integration import test_parallel_steps


def gpt_row(name: str) -> tuple[float, float, float]:
    """Return the three differences for a GPT case."""
    case, base, adapters = oracle.load_adapted(name)
    samples = oracle.samples(case)[:4]
    batch = pack(samples)
    with torch.no_grad():
        logits = base.model(batch.tokens, batch.position_ids, AttentionPlan(batch.groups))[0]
    places = zip(batch.cache_index, batch.lengths, strict=True)
    pairs = [(logits[place[:length]], case["logits"][row, :length]) for row, (place, length) in enumerate(places)]
    loss, gradients, _ = gradients_of(base, adapters, samples, micro_batch_size=4)
    return _differences(pairs, loss, float(case["loss"]), gradients, oracle.gradients(case["grads"]))


def t5_row(name: str) -> tuple[float, float, float]:
    """Return the three differences for a T5 case."""
    case, base, _ = t5.adapted(name)
    samples = t5.examples(case)[:4]
    logits = t5.logits_of(base, samples)
    wanted = torch.cat([case["logits"][row, : len(sample.decoder_ids) - 1] for row, sample in enumerate(samples)])
    loss, gradients = t5.loss_and_gradients(base, samples)
    return _differences([(logits, wanted)], loss, float(case["loss"]), gradients, case["grads"])


def _differences(
    logits: list[tuple[Tensor, Tensor]], loss: float, wanted: float, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> tuple[float, float, float]:
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    gradient = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest
    return max(float((a - b).abs().max()) for a, b in logits), abs(loss - wanted) / wanted, gradient


def oracle_table() -> None:
    """Print a row for each reference file with logits."""
    print("| reference file | logits (absolute) | loss (relative) | gradients (relative to the largest) |")
    print("| --- | --- | --- | --- |")
    for row, names in ((gpt_row, oracle.GPT_CASES), (t5_row, t5.CASES)):
        for name in names:
            print(f"| {name}.pt | " + " | ".join(f"{value:.1e}" for value in row(name)) + " |", flush=True)


def parallel_table() -> None:
    """Print a row for each case of the parallel tests."""
    print("| case | loss (relative) | gradients (absolute, largest of all) | adapter after 3 steps (absolute) |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base_of = partial(test_parallel_steps.base_of, folder)
        for ranks, cases_of in ((2, test_parallel_steps.cases_of_two), (4, test_parallel_steps.cases_of_four)):
            steps = test_parallel_steps.Steps(ranks, cases_of(base_of), folder)
            for place, case in enumerate(steps.cases):
                differences = (_step_differences(results[place], steps.single(case)) for results in steps.results)
                values = [max(column) for column in zip(*differences, strict=True)]
                print(f"| {case} | " + " | ".join(f"{value:.1e}" for value in values) + " |", flush=True)


def _step_differences(result: dict[str, Any], wanted: dict[str, Any]) -> tuple[float, float, float]:
    steps = list(zip(result["steps"], wanted["steps"], strict=True))
    loss = max(abs(mine["loss"] - theirs["loss"]) / theirs["loss"] for mine, theirs in steps)
    gradients = [value for mine, theirs in steps for value in _distances(mine["gradients"], theirs["gradients"])]
    return loss, max(gradients), max(_distances(result["end"], wanted["end"]))


def _distances(mine: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]) -> Iterator[float]:
    for key, tensors in theirs.items():
        yield from (float((mine[key][name] - tensor).abs().max()) for name, tensor in tensors.items())


def huggingface_table() -> None:
    """Print a row for each configuration of the conversion tests."""
    print("| Hugging Face model | logits (absolute) |")
    print("| --- | --- |")
    for name in test_hf_families.FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            mine, theirs = test_hf_families.logits_of_both(name, Path(folder))
        print(f"| {name} | {float((mine - theirs).abs().max()):.1e} |", flush=True)


TABLES = {"oracle": oracle_table, "parallel": parallel_table, "huggingface": huggingface_table}


def main(names: list[str]) -> None:
    """Print the tables with these names."""
    quiet_libraries()
    for name in names or TABLES:
        TABLES[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
