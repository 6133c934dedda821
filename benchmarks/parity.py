"""How far the engine is from what NVIDIA's own code answered: `python benchmarks/parity.py`.

Prints a row for each reference file in the folder `oracle` of the shared reference files (tests/shared.py): the largest
difference of logits, the relative difference of the loss, and the largest difference of gradients relative to the
largest gradient. Everything in fp32 on the CPU, prompts packed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from nemo_launcher.data.batching import pack
from nemo_launcher.models.attention import AttentionPlan
from nemo_launcher.quiet import quiet_libraries
from tests import oracle, t5
from tests.engine import gradients_of


def gpt_row(name: str) -> tuple[float, float, float]:
    """Return the three differences of a GPT case."""
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
    """Return the three differences of a T5 case."""
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


def main() -> None:
    """Print the table."""
    quiet_libraries()
    print("| reference file | logits (absolute) | loss (relative) | gradients (relative to the largest) |")
    print("| --- | --- | --- | --- |")
    for row, names in ((gpt_row, oracle.GPT_CASES), (t5_row, t5.CASES)):
        for name in names:
            print(f"| {name}.pt | " + " | ".join(f"{value:.1e}" for value in row(name)) + " |", flush=True)


if __name__ == "__main__":
    main()
