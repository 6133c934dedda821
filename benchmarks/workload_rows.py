# SPDX-License-Identifier: Apache-2.0
"""The measurement of each row of benchmarks/workloads.py."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from benchmarks.side import Side, WorkerDied, machine
from benchmarks.training import PEERS
from benchmarks.workload_records import made_records, records_of_file
from benchmarks.workload_results import Results, Row
from benchmarks.workload_setup import make_bases, product_rates, tell, version_of
from nemo_launcher.data.squad_format import read_questions
from nemo_launcher.errors import Problem, UserError

if TYPE_CHECKING:
    from benchmarks.workloads import Cell

COUNT_STARTUP_BELOW = 100
"""With fewer records, the start-up counts."""
TOKENS = 16
"""The number of tokens to generate."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "layout=fixed": {"layout": "fixed"},
    "pack=False": {"pack": False},
    "share_prefix=False": {"share_prefix": False},
    "neither": {"share_prefix": False, "pack": False},
}
"""The settings of `model.data` that are compared; share_prefix has no effect on T5."""


def measure_all(options: argparse.Namespace) -> Results:
    """Measure the rows that the results in options.json lack, and return all results."""
    results = Results.read(options.json) if options.json and options.json.is_file() else Results()
    options.peft = version_of(options.peer_python, "peft")
    if options.peft is None:
        tell(f"{options.peer_python} has no PEFT: plain transformers alone is measured (--peer-python)")
    read_questions(options.squad)  # problems in files are told before anything is made
    for cell in options.cells:
        if own := _own_file(cell, options):
            records_of_file(cell.workload, own)
    make_bases(options, sorted({cell.base for cell in options.cells} | {"smollm2"}))
    results.machine = machine(options.threads)
    results.versions = {
        "ours": {"torch": version_of(sys.executable, "torch")},
        "peer": {name: version_of(options.peer_python, name) for name in ("torch", "transformers", "peft")},
    }
    if not results.products:
        results.products = product_rates(options)
    for cell in options.cells:
        given = row_options(cell, options)
        if results.has(cell.name, given):
            tell(f"{cell.name}: measured already")
            continue
        results.add(_row(cell, options, given))
        if options.json:
            results.write(options.json)
    return results


def row_options(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a row's figures depend on, in JSON's types."""
    own = _own_file(cell, options)
    found = {
        **dataclasses.asdict(cell),
        "pairs": options.pairs,
        "rounds": options.rounds or cell.workload.rounds,
        "threads": options.threads,
        "peft": options.peft,
        "data": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (options.squad, own) if path],
    }
    same: dict[str, Any] = json.loads(json.dumps(found))
    return same


def _own_file(cell: Cell, options: argparse.Namespace) -> Path | None:
    own: Path | None = getattr(options, f"{cell.workload.name}_file", None)
    return own


def _row(cell: Cell, options: argparse.Namespace, given: Mapping[str, Any]) -> Row:
    """Measure one row; a side that dies, such as for lack of memory, makes it a failed one."""
    row: Row = {
        "name": cell.name,
        "workload": cell.workload.name,
        "base": cell.base_title,
        "family": cell.family,
        "dtype": cell.dtype,
        "method": None if cell.workload.generation else cell.method,
        "date": datetime.date.today().isoformat(),
        "options": dict(given),
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            measurement = _Measurement(cell, options, Path(folder))
            row |= measurement.generation() if cell.workload.generation else measurement.training()
        except (WorkerDied, UserError) as error:
            lines = str(error).strip().splitlines()
            row["failed"] = " ".join(dict.fromkeys([lines[0], lines[-1]]))[:300]
            tell(f"{cell.name}: {error}")
    return row


class _Measurement:
    """The sides of one row."""

    def __init__(self, cell: Cell, options: argparse.Namespace, folder: Path) -> None:
        self.cell, self.workload, self.options, self.folder = cell, cell.workload, options, folder
        own = _own_file(cell, options)
        if own is None:
            tokenizer = Tokenizer.from_file(str(options.folder / cell.base / "tokenizer.json"))
            records = made_records(self.workload, options.squad, tokenizer)
        else:
            records = records_of_file(self.workload, own)
        self.common = {
            "base": str(options.folder / f"{cell.base}.nemo"),
            "hf": str(options.folder / cell.base),
            "family": cell.family,
            "dtype": cell.dtype,
            "method": cell.method,
            "threads": options.threads,
            "records": self.workload.records,
            "batch": self.workload.batch,
            "global_batch": self.workload.global_batch,
            "our_batch": 64,
            "epochs": self.workload.epochs,
            "tokens": TOKENS,
            "singles": 1,
            "records_path": str(records.save(folder / "records.json")),
            "samples_path": str(folder / "samples.json"),
        }
        self.seconds: dict[str, list[float]] = {}
        self.memory: dict[str, float] = {}
        self.startup: dict[str, dict[str, float]] = {}

    @contextmanager
    def _sides(self, kind: str, peers: tuple[str, ...]) -> Iterator[dict[str, Side]]:
        """Start our side, and then a process for each peer."""
        with ExitStack() as stack:
            sides = {"ours": stack.enter_context(self._side(f"{kind}_ours.py", "ours"))}
            self.encoded = sides["ours"].ask("encode")
            if not self.encoded["samples"]:
                what = "no record fits into the base's context" if self.encoded["dropped"] else "there are no records"
                raise UserError(Problem(self.cell.name, what, f"give other records to --{self.workload.name}-file"))
            for peer in peers:
                sides[peer] = stack.enter_context(self._side(f"{kind}_peer.py", peer))
                sides[peer].ask("startup")  # before the next one starts
            for name, side in sides.items():
                self.startup[name] = side.ask("startup") | side.ask("warm_up")
            yield sides

    def _side(self, script: str, name: str) -> Side:
        python = sys.executable if name == "ours" else self.options.peer_python
        own = {"XDG_CACHE_HOME": str(self.folder / "cache")} if name == "ours" else {}
        common = self.common | {"peer": name}
        log, threads = self.folder / f"{name}.log", self.options.threads
        return Side(script, common, python=python, threads=threads, log=log, environment=own)

    def _measure(self, key: str, side: Side, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a command, and note its seconds and the peak memory after its first run under a key."""
        answer = side.ask(command, **arguments)
        self.seconds.setdefault(key, []).append(answer["seconds_per_sample"])
        self.memory.setdefault(key, side.ask("memory")["peak_memory_gib"])
        tell(f"{self.cell.name} {key}: {answer['seconds_per_sample']:.4f} s/record")
        return answer

    def training(self) -> Row:
        """Measure training."""
        peers = ("peft", "plain") if self.options.peft and self.cell.method in PEERS["peft"] else ("plain",)
        with self._sides("training", peers) as sides:
            ours, part = sides["ours"], self._part()
            modes = {"best": peers[0], "plain": "plain", "default": peers[0]}  # the first needs the least memory
            for _ in range(self._rounds()):
                self._measure("ours", ours, "train")
                for mode, name in modes.items():
                    self._measure(mode, sides[name], "train", mode=mode, part=part)
            found = (self._layouts(ours) if self.options.pairs else {}) | ours.ask("layout")
            paths = {name: str(self.folder / f"{name}.pt") for name in sides}
            losses = {name: side.ask("gradients", path=paths[name])["loss"] for name, side in sides.items()}
            found["gradient_difference"] = ours.ask("compare", path=paths["ours"], other=paths[peers[0]])["difference"]
            found["loss_difference"] = abs(losses["ours"] - losses[peers[0]]) / abs(losses[peers[0]])
        return self._figures(peers[0], modes) | found

    def generation(self) -> Row:
        """Measure greedy generation."""
        with self._sides("generation", ("plain",)) as sides:
            part = self._part()
            for _ in range(self._rounds()):
                mine = self._measure("ours", sides["ours"], "generate", mode="ours")["tokens"]
                for mode in ("best", "default"):
                    theirs = self._measure(mode, sides["plain"], "generate", mode=mode, part=part)["tokens"]
        pairs = [pair for pair in zip(mine, theirs, strict=True) if pair[1] is not None]
        same = sum(one == other for one, other in pairs) / len(pairs)
        return self._figures("transformers", {"best": "plain", "default": "plain"}) | {"same_tokens": same}

    def _rounds(self) -> int:
        return int(self.options.rounds or self.workload.rounds)

    def _part(self) -> int | None:
        """Return how many records the peers are measured on; None for all."""
        return None if self.workload.peer_records >= self.encoded["samples"] else self.workload.peer_records

    def _layouts(self, ours: Side) -> Row:
        """Compare our default layout with the fixed ones, in turns that alternate between two orders."""
        part = min(self.workload.layout_records, self.encoded["samples"])
        layouts = {
            name: settings
            for name, settings in LAYOUTS.items()
            if self.cell.family == "gpt" or "share_prefix" not in settings
        }
        taken: dict[str, list[float]] = {name: [] for name in layouts}
        for pair in range(self.options.pairs):
            for name in list(layouts)[:: 1 if pair % 2 else -1]:
                taken[name].append(ours.ask("train", part=part, **layouts[name])["seconds_per_sample"])
        medians = {name: statistics.median(values) for name, values in taken.items()}
        best = min(seconds for name, seconds in medians.items() if name != "default")
        tell(f"{self.cell.name} layouts: {', '.join(f'{name} {value:.4f}' for name, value in medians.items())}")
        found: Row = {"layouts": medians, "layout_records": part, "pairs": self.options.pairs}
        return found | {"lost_to_best_fixed": medians["default"] / best - 1}

    def _figures(self, peer: str, sides: Mapping[str, str]) -> Row:
        """Return the row's common figures; sides: the side of each of the peer's modes."""
        count = self.encoded["samples"]
        passes = count * self.workload.epochs
        fastest = {key: min(values) * passes for key, values in self.seconds.items()}
        counts_startup = count < COUNT_STARTUP_BELOW
        once = {key: sum(self.startup[sides.get(key, "ours")].values()) if counts_startup else 0.0 for key in fastest}
        ratios = {key: (once[key] + fastest[key]) / (once["ours"] + fastest["ours"]) for key in fastest}
        measured = {"ratio": "default", "ratio_best": "best", "ratio_plain": "plain"}
        figures: Row = {name: ratios.get(key) for name, key in measured.items()}
        figures["peer"] = {"peft": f"PEFT {self.options.peft}", "plain": "transformers"}.get(peer, peer)
        if peer == "plain" and self.cell.method in PEERS["peft"]:  # PEFT is not installed
            figures |= {"ratio": None, "ratio_best": None, "peer": "transformers, without PEFT"}
        part = self._part()
        return figures | {
            "ratio_without_startup": fastest["default"] / fastest["ours"],
            "ratio_best_without_startup": fastest["best"] / fastest["ours"],
            "memory_ratio": self.memory["ours"] / self.memory["default"],
            "memory_ratio_best": self.memory["ours"] / self.memory["best"],
            "our_seconds_per_record": fastest["ours"] / passes,
            "pass_seconds": fastest,
            "startup_seconds": {name: times["startup_seconds"] for name, times in self.startup.items()},
            "cold_seconds": {name: times["cold_seconds"] for name, times in self.startup.items()},
            "calibration_seconds": self.startup["ours"].get("calibration_seconds"),
            "counts_startup": counts_startup,
            "all_seconds_per_record": self.seconds,
            "peak_memory_gib": self.memory,
            "peer_records": count if part is None else part,
            **self.encoded,
        }
