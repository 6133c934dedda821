# SPDX-License-Identifier: Apache-2.0
"""Training compared with a peer, with the same model, samples, dtype and threads:

    python benchmarks/training.py --base BASE.nemo --hf HF_FOLDER --data SQUAD_V1.json --method ia3 --peer peft
        --dtype fp32 --samples 200 --json out.json

Both sides train on all samples in each round, alternating, each in its own process; the fastest round is reported. The
peer runs in its usual way (random batches of 8, padded to the longest) and in its best way (sorted by length, logits of
the answers only). ratio, ratio_best: the peer's seconds per sample divided by ours; memory_ratio, memory_ratio_best:
our peak resident memory divided by the peer's. The gradients of the first samples are compared, except those of the
peer's biases, which NeMo's adapters do not have.
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

PEERS = {
    "peft": ("ia3", "lora"),
    "adapters": ("adapter",),
    "plain": ("adapter", "linear_adapter", "ia3", "lora"),
}
"""The methods of each peer: PEFT, AdapterHub, and transformers with hooks (benchmarks/peer_hooks.py)."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base model as .nemo")
    parser.add_argument("--hf", required=True, help="the same model as a Hugging Face folder")
    parser.add_argument("--data", required=True, help="questions in the SQuAD v1.1 format")
    parser.add_argument("--method", choices=PEERS["plain"], default="ia3")
    parser.add_argument("--peer", choices=tuple(PEERS), default="peft")
    parser.add_argument("--family", choices=("gpt", "t5"), default="gpt")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="samples a batch of the peer, and our micro_batch_size")
    parser.add_argument("--global-batch", type=int, default=64, help="our global_batch_size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch-compile", action="store_true", help="ours with model.torch_compile")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has the peer's packages")
    parser.add_argument("--json", help="where the figures go too")
    options = parser.parse_args(arguments)
    if options.method not in PEERS[options.peer]:
        parser.error(f"--peer {options.peer} has {', '.join(PEERS[options.peer])}, not {options.method}")
    return options


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return all results."""
    records = squad_records(options.data, options.samples).save(folder / "records.json")
    common = {**vars(options), "records_path": str(records), "samples_path": str(folder / "samples.json")}
    with Side(
        "training_ours.py", common, python=sys.executable, threads=options.threads, log=folder / "ours.log"
    ) as ours:
        encoded = ours.ask("encode")
        with Side(
            "training_peer.py", common, python=options.peer_python, threads=options.threads, log=folder / "peer.log"
        ) as peer:
            return _figures(options, folder, ours, peer) | encoded


def _figures(options: argparse.Namespace, folder: Path, ours: Side, peer: Side) -> dict[str, Any]:
    versions = {"ours": ours.ask("versions"), "peer": peer.ask("versions")}
    losses = [side.ask("gradients", path=str(folder / name))["loss"] for name, side in (("a", ours), ("b", peer))]
    difference = ours.ask("compare", path=str(folder / "a"), other=str(folder / "b"))["difference"]
    seconds: dict[str, list[float]] = {"ours": [], "best": [], "default": []}
    memory: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for name, taken in seconds.items():
            if number == 0 and name == "default":
                continue  # its peak memory would hide that of the best mode
            side = ours if name == "ours" else peer
            part = None if number else options.global_batch  # the first round is a warm-up
            answer = side.ask("train", mode=name, part=part)
            if number:
                taken.append(answer["seconds_per_sample"])
            if number < 2 or name != "best":
                memory[name] = side.ask("memory")["peak_memory_gib"]
            print(f"round {number} {name}: {answer['seconds_per_sample']:.4f} s/sample", file=sys.stderr, flush=True)
    fastest = {name: min(values) for name, values in seconds.items()}
    return {
        "ratio": fastest["default"] / fastest["ours"],
        "ratio_best": fastest["best"] / fastest["ours"],
        "memory_ratio": memory["ours"] / memory["default"],
        "memory_ratio_best": memory["ours"] / memory["best"],
        "max_relative_gradient_difference": difference,
        "relative_loss_difference": abs(losses[0] - losses[1]) / abs(losses[1]),
        "seconds_per_sample": fastest,
        "all_seconds_per_sample": seconds,
        "peak_memory_gib": memory,
        "versions": versions,
        "machine": machine(options.threads),
        "date": datetime.date.today().isoformat(),
        "options": {name: value for name, value in vars(options).items() if name not in _PATHS},
    }


_PATHS = ("base", "hf", "data", "json", "peer_python")


if __name__ == "__main__":
    publish(measure, parse(sys.argv[1:]))
