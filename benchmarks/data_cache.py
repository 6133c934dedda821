# SPDX-License-Identifier: Apache-2.0
"""Cost and savings of the data cache: `python benchmarks/data_cache.py --base BASE.nemo`.

Three variants are measured for each number of samples, each in its own process with the base's tokenizer: samples in
memory, without a cache; the first start, which creates the cache; and the second start. seconds: until the order of the
samples is known. peak_mib: peak memory above that with the tokenizer loaded. The text is synthetic, in SQuAD's format:
five questions on each paragraph of 120 words.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.side import machine, publish
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.cache import cached_samples
from nemo_launcher.data.sample_order import PrefixShuffleSampler
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import load_tokenizer
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder

TEMPLATE = TaskTemplate(
    taskname="squad",
    prompt_template="context: {context} question: {question} answer: {answer}",
    answer_only_loss=True,
    answer_field="answer",
)
COMMON_WORDS = """
the of and in to a was by for with as on from that it were at which an first city river century king war music company
school north law work name house people water government church game film road region language science
"""


def write_data(path: Path, count: int) -> None:
    """Write `count` records, one by one."""
    generator = random.Random(count)

    def text(words: int) -> str:
        return " ".join(generator.choices(COMMON_WORDS.split(), k=words))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 5 == 0:
                context = text(120)
            record = {"taskname": "squad", "context": context, "question": text(11) + "?", "answer": text(3)}
            file.write(json.dumps(record) + "\n")


def start(base: Path, data: Path, folders: list[Path]) -> dict[str, float]:
    """Do what a training job does with its data before the first step."""
    with Archive(base) as archive:
        tokenizer = load_tokenizer(archive)
    encoder = GPTPromptEncoder(tokenizer=tokenizer, add_bos=False, add_eos=True, max_seq_length=2048, for_train=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, began = _peak_mib(), time.perf_counter()
    samples = cached_samples(
        [str(data)], [TEMPLATE], encoder, max_dropped_share=0.0, folders=folders, with_prefixes=True
    )
    sampler = PrefixShuffleSampler(samples, shuffle=True, share_prefix=True, seed=1, global_batch_size=64)
    next(iter(sampler))
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mib": round(_peak_mib() - before, 1)}


def _peak_mib() -> float:
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def in_new_process(*arguments: Any) -> dict[str, float]:
    """Run `start` in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(start, *arguments).result()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the results for all numbers of samples."""
    figures = {}
    for count in options.samples:
        data, cache = folder / f"{count}.jsonl", folder / f"cache_{count}"
        write_data(data, count)
        figures[count] = {
            "in_memory": in_new_process(options.base, data, []),
            "first_start": in_new_process(options.base, data, [cache]),
            "second_start": in_new_process(options.base, data, [cache]),
            "data_mib": round(data.stat().st_size / 2**20, 1),
            "cache_mib": round(sum(path.stat().st_size for path in cache.iterdir()) / 2**20, 1),
        }
    return {"samples": figures, "machine": machine(1)}


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a base .nemo; only its tokenizer is loaded")
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 90_000])
    parser.add_argument("--json", help="also write the figures to this file")
    publish(measure, parser.parse_args())


if __name__ == "__main__":
    main()
