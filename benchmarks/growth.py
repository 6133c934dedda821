# SPDX-License-Identifier: Apache-2.0
"""Growth of training time with questions per paragraph, sequence length and number of samples:

    python benchmarks/growth.py --base BASE.nemo --data SQUAD_V1.json --json out.json

Reported are seconds per sample, computed tokens per sample, and the peak resident memory so far. Paragraphs and
questions are those of the file; a question may be combined with another paragraph, and long contexts are several
paragraphs.

    python benchmarks/growth.py --traversal --base BASE.nemo --data SQUAD_V1.json --json out.json

measures instead one global batch of 4 to 256 questions about one context, each number in a process of its own, with
model.data.traversal=breadth and depth: seconds, computed tokens and peak resident memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import SQUAD, Records
from benchmarks.side import Side, machine, publish
from benchmarks.training_ours import Ours
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.squad_format import read_questions
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.runtime.memory import peak_memory_gib

QUESTIONS = (1, 2, 5, 20)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
COUNTS = (64, 256, 1024)
BRANCHES = (4, 8, 16, 32, 64, 128, 256)
CONTEXT = 1024
"""Tokens of the context of the branches."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base model as .nemo")
    parser.add_argument("--data", required=True, help="questions in the SQuAD v1.1 format")
    parser.add_argument("--method", choices=("ia3", "adapter"), default="ia3")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--samples", type=int, default=60, help="of each point, the number of samples apart")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--traversal", action="store_true", help="measure branches breadth-first and depth-first")
    parser.add_argument("--json", help="where the figures go too")
    return parser.parse_args(arguments)


class Growth:
    """The frozen base with adapters, and texts for samples."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds = options.rounds
        self.texts = read_questions(Path(options.data))
        self.contexts = list(dict.fromkeys(question.context for question in self.texts))
        with tempfile.TemporaryDirectory() as folder:
            fixed = {"batch": 8, "global_batch": 64, "family": "gpt", "samples_path": f"{folder}/samples.json"}
            self.ours = Ours(vars(options) | fixed)
        self.encoder = self.ours.base.family.prompt_encoder(
            self.ours.base.tokenizer, self.ours.base.shape, PromptSettings.read({})
        )

    def samples(self, contexts: Sequence[str], questions: int, count: int) -> Iterator[Any]:
        """Yield `count` samples, with several questions on each context."""
        texts = cycle(self.texts)
        for number in range(count):
            text, context = next(texts), contexts[number // questions % len(contexts)]
            record = {"context": context, "question": text.question, "answer": text.answers[0]}
            yield self.encoder.encode(record, SQUAD)

    def of_length(self, length: int) -> list[str]:
        """Return contexts of about `length` tokens."""
        tokens = self.ours.base.tokenizer
        pieces = cycle(tokens.text_to_ids(context) for context in self.contexts)
        found = []
        for _ in range(16):
            ids: list[int] = []
            while len(ids) < length - 40:  # the rest is for the question
                ids += next(pieces)
            found.append(tokens.ids_to_text(ids[: length - 40]))
        return found

    def measure(self, samples: Sequence[Any]) -> dict[str, float]:
        """Train on the samples; return the results of the fastest round."""
        self.ours.samples = list(samples)
        size = self.ours.options["batch"]
        batch = Collate(Layout.one_after_the_other(size), True, pack=pack, keep_groups=True)(self.ours.samples)
        seconds = [self.ours.train("ours", None)["seconds_per_sample"] for _ in range(self.rounds)]
        point = {
            "seconds_per_sample": min(seconds),
            "computed_tokens_per_sample": batch.computed_tokens / len(samples),
            "peak_memory_gib": peak_memory_gib(),
        }
        print({name: round(value, 4) for name, value in point.items()}, file=sys.stderr, flush=True)
        return point


def _branches(options: dict[str, Any], traversal: str, folder: Path) -> dict[str, float]:
    """Return the figures of one global batch, in a process of its own."""
    worker = {"python": sys.executable, "threads": options["threads"], "log": folder / "log"}
    with Side("training_ours.py", options, **worker) as side:
        side.ask("encode")
        rounds = [side.ask("train", traversal=traversal) for _ in range(1 + options["rounds"])]
        seconds = options["records"] * min(answer["seconds_per_sample"] for answer in rounds[1:])
        point = {"seconds": seconds, **side.ask("layout", traversal=traversal), **side.ask("memory")}
    print(traversal, {name: round(value, 4) for name, value in point.items()}, file=sys.stderr, flush=True)
    return point


def branches(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return seconds, tokens and memory for each traversal and number of questions about one context."""
    growth, texts = Growth(options), cycle(read_questions(Path(options.data)))
    context = growth.of_length(CONTEXT)[0]
    found: dict[str, dict[int, dict[str, float]]] = {}
    for count in BRANCHES:
        chosen = [next(texts) for _ in range(count)]
        records = [{"context": context, "question": text.question, "answer": text.answers[0]} for text in chosen]
        path = Records(SQUAD, records).save(folder / "records.json")
        given = {"records_path": str(path), "samples_path": str(folder / "samples.json")}
        given |= {"batch": 8, "global_batch": count, "family": "gpt", "records": count}
        for traversal in ("breadth", "depth"):
            found.setdefault(traversal, {})[count] = _branches(vars(options) | given, traversal, folder)
    return {"branches": found, "context_tokens": CONTEXT, "machine": machine(options.threads)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    if options.traversal:
        return branches(options, folder)
    growth, count = Growth(options), options.samples
    growth.measure(list(growth.samples(growth.contexts, 5, count)))  # warm-up
    number = {n: growth.measure(list(growth.samples(growth.contexts, 5, n))) for n in COUNTS}
    questions = {n: growth.measure(list(growth.samples(growth.contexts, n, count))) for n in QUESTIONS}
    length = {n: growth.measure(list(growth.samples(growth.of_length(n), 5, min(count, 20)))) for n in LENGTHS}
    return {
        "samples": number,
        "questions_per_paragraph": questions,
        "sequence_length": length,
        "machine": machine(options.threads),
    }


if __name__ == "__main__":
    publish(measure, parse(sys.argv[1:]))
