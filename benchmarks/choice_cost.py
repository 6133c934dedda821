# SPDX-License-Identifier: Apache-2.0
"""What T-Few's losses over several answer choices cost, in CPU seconds of a training step with IA3 on long prompts.

    python -m benchmarks.choice_cost --base BASE.nemo

A step has records of one prompt each, of at least `--tokens` tokens, with a short answer. With four choices, it adds
the unlikelihood and the length-normalised loss over all of them; with one, it learns the answer alone. Both run in turn
in one thread. The figures are user seconds of the process, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics

import torch

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward

RECORDS = 4
ANSWERS = ("entailment", "contradiction", "neutral", "it is not known")
TEMPLATE = TaskTemplate(
    taskname="nli",
    prompt_template="{text} answer: {answer}",
    answer_field="answer",
    answer_only_loss=True,
    choices=ANSWERS,
)


def global_batch(base: Base, tokens: int, *, with_choices: bool) -> GlobalBatch:
    """Return the records of a step; `tokens` words each, which have at least as many tokens."""
    generator = random.Random(1)
    encoder = base.family.prompt_encoder(
        base.tokenizer, base.shape, PromptSettings.read({"add_eos": True}), with_choices=with_choices
    )
    samples = []
    for number in range(RECORDS):
        text = " ".join(str(generator.randrange(10, 100)) for _ in range(tokens))
        record: dict[str, object] = {"text": text, "answer": ANSWERS[number % len(ANSWERS)]}
        samples.append(encoder.encode(record, TEMPLATE, f"record {number}"))
    assert all(len(sample.input_ids) >= tokens for sample in samples)
    layout = Layout.one_after_the_other(RECORDS)
    return Collate(layout, base.family.shares_prefixes, pack=base.family.pack, keep_groups=True)(samples)


def user_seconds(base: Base, batch: GlobalBatch, loss: TrainingLoss) -> float:
    """Return the CPU seconds of a step's forward and backward pass."""
    start = os.times().user
    forward_backward(base.model, batch, backward=True, loss=loss)
    return os.times().user - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a GPT or Llama model in .nemo format")
    parser.add_argument("--tokens", type=int, default=512, help="the least number of tokens of a prompt (default 512)")
    parser.add_argument("--pairs", type=int, default=9, help="measured pairs of steps (default 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(options.base)
    AdapterSet(base.model, base.shape, {"seed": 1})  # without adapter_tuning: IA3
    both = TrainingLoss(unlikelihood=True, length_norm=True)
    steps = {
        "one choice": (global_batch(base, options.tokens, with_choices=False), TrainingLoss()),
        "four choices": (global_batch(base, options.tokens, with_choices=True), both),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.pairs + 1):
        for name, (batch, loss) in list(steps.items())[:: 1 if turn % 2 else -1]:
            found = user_seconds(base, batch, loss)
            if turn:  # the first steps allocate
                seconds[name].append(found)
    for name, (batch, _) in steps.items():
        print(f"{name}: {batch.computed_tokens:,} tokens, median {statistics.median(seconds[name]):.2f} s")
    ratios = [four / one for one, four in zip(*seconds.values(), strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
