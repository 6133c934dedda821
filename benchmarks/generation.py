# SPDX-License-Identifier: Apache-2.0
"""Greedy generation compared with transformers' generate, with the same model, prompts, dtype and threads:

    python benchmarks/generation.py --base BASE.nemo --hf HF_FOLDER --data SQUAD_V1.json --samples 64 --json out.json

Both sides answer all questions in each round, alternating, each in its own process; the fastest round is reported. The
peer runs in its usual way (random batches of 8, padded on the left) and in its best way (sorted by length). Then both
answer one question of each of the first paragraphs, one after the other. ratio, ratio_best, ratio_single: the peer's
seconds per sample divided by ours; same_tokens: the fraction of samples with the same tokens on both sides.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.records import squad_records
from benchmarks.side import Side, machine, publish


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base model as .nemo")
    parser.add_argument("--hf", required=True, help="the same model as a Hugging Face folder")
    parser.add_argument("--data", required=True, help="questions in the SQuAD v1.1 format")
    parser.add_argument("--peer", choices=("transformers",), default="transformers")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate, none ends earlier but at its end")
    parser.add_argument("--batch", type=int, default=8, help="samples a batch of the peer")
    parser.add_argument("--our-batch", type=int, default=64, help="our inference.batch_size")
    parser.add_argument("--singles", type=int, default=8, help="paragraphs of which one question is asked alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peer's packages")
    parser.add_argument("--json", help="where the figures go too")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all results."""
    records = squad_records(options.data, options.samples).save(folder / "records.json")
    common = {**vars(options), "records_path": str(records), "samples_path": str(folder / "samples.json")}
    pythons = {"ours": sys.executable, "peer": options.peer_python}
    started = {
        name: Side(f"generation_{name}.py", common, python=python, threads=options.threads, log=folder / f"{name}.log")
        for name, python in pythons.items()
    }
    with started["ours"] as ours, started["peer"] as peer:
        encoded = ours.ask("encode")
        seconds: dict[str, list[float]] = {
            name: [] for name in ("ours", "best", "default", "ours_single", "peer_single")
        }
        tokens: dict[str, list[list[int]]] = {}
        for number in range(options.rounds + 1):  # the first round is a warm-up
            for name, taken in seconds.items():
                answer = (ours if name.startswith("ours") else peer).ask("generate", mode=name)
                tokens[name] = answer["tokens"]
                if number:
                    taken.append(answer["seconds_per_sample"])
                print(
                    f"round {number} {name}: {answer['seconds_per_sample']:.4f} s/sample", file=sys.stderr, flush=True
                )
        memory = {name: side.ask("memory")["peak_memory_gib"] for name, side in (("ours", ours), ("peer", peer))}
    fastest = {name: min(values) for name, values in seconds.items()}
    same = [mine == theirs for mine, theirs in zip(tokens["ours"], tokens["best"], strict=True)]
    return {
        "ratio": fastest["default"] / fastest["ours"],
        "ratio_best": fastest["best"] / fastest["ours"],
        "ratio_single": fastest["peer_single"] / fastest["ours_single"],
        "memory_ratio": memory["ours"] / memory["peer"],
        "same_tokens": sum(same) / len(same),
        "seconds_per_sample": fastest,
        "peak_memory_gib": memory,
        "machine": machine(options.threads),
        "date": datetime.date.today().isoformat(),
        **encoded,
    }


if __name__ == "__main__":
    publish(measure, parse(sys.argv[1:]))
