# SPDX-License-Identifier: Apache-2.0
"""Training and generation on many kinds of data, compared with PEFT and with plain transformers:

    python benchmarks/workloads.py --squad SQUAD_V1.json --json FILE.json --peer-python PYTHON

Records are made from the words of the SQuAD file, or taken from a file of one's own (--NAME-file). Each row runs in
fresh processes, which alternate. `ratio` is the time of PEFT as its users run it divided by ours, `ratio_best` that of
PEFT at its best, `ratio_plain` that of transformers with hooks and the batches in the file's order; with fewer than 100
records the start-up counts. For methods that PEFT lacks, all are plain transformers. With --pairs,
`lost_to_best_fixed` compares our default layout with the fastest of `model.data.share_prefix` and `pack` set by hand.
FILE.json is written after each row, and a row in it with the same options is not measured again. --table FILE.json
prints it as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import PEERS
from benchmarks.workload_records import Text, Workload
from benchmarks.workload_results import Results, table
from nemo_launcher.errors import UserError

WORKLOADS = (
    Workload(
        name="squad",
        kind="questions on paragraphs",
        template="context: {context} question: {question} answer: {answer}",
        records=100,
        layout_records=40,
    ),
    Workload(
        name="classification",
        kind="classification, short common prefix",
        template="news text: {text} topic: {label}",
        fields={"text": Text(20, 50), "label": Text(is_label=True)},
        seed=1,
    ),
    Workload(
        name="instruction",
        kind="classification, long instruction",
        template="{instruction} text: {text} topic: {label}",
        fields={"instruction": Text(200, 200, shared=True), "text": Text(20, 50), "label": Text(is_label=True)},
        seed=2,
        layout_records=16,
    ),
    Workload(
        name="few_shot",
        kind="8 shared shots",
        template="{shots} text: {text} label: {label}",
        fields={"shots": Text(64, 72, shared=True, shots=8), "text": Text(20, 50), "label": Text(is_label=True)},
        seed=3,
        layout_records=8,
        peer_records=8,
    ),
    Workload(
        name="headlines",
        kind="long in, short out",
        template="article: {article} headline: {headline}",
        fields={"article": Text(150, 320), "headline": Text(8, 14)},
        seed=4,
        layout_records=8,
        peer_records=8,
    ),
    Workload(
        name="long_documents",
        kind="2k to 8k tokens, nothing shared",
        template="{document} summary: {summary}",
        fields={"document": Text(2050, 8000, skew=4), "summary": Text(30, 80)},
        seed=5,
        batch=1,
        global_batch=16,
        short=True,
        layout_records=4,
        peer_records=4,
    ),
    Workload(
        name="chat",
        kind="long answers",
        template="user: {message} assistant: {reply}",
        fields={"message": Text(20, 40), "reply": Text(120, 220)},
        seed=6,
        layout_records=8,
        peer_records=8,
    ),
    Workload(
        name="one_record",
        kind="one record alone",
        template="context: {context} question: {question} answer: {answer}",
        records=1,
        batch=1,
        global_batch=1,
        rounds=3,
        peer_records=1,
    ),
    Workload(
        name="sixteen",
        kind="16 records",
        template="news text: {text} topic: {label}",
        fields={"text": Text(30, 60), "label": Text(is_label=True)},
        records=16,
        seed=7,
        batch=16,
        global_batch=16,
        epochs=3,
    ),
    Workload(
        name="generation",
        kind="answers to questions on paragraphs",
        template="context: {context} question: {question} answer: {answer}",
        records=100,
        peer_records=32,
        generation=True,
    ),
    Workload(
        name="generation_one",
        kind="one prompt alone",
        template="context: {context} question: {question} answer: {answer}",
        records=1,
        batch=1,
        rounds=3,
        peer_records=1,
        generation=True,
    ),
)
FAMILIES, DTYPES, METHODS = ("gpt", "t5"), ("fp32", "bf16"), PEERS["plain"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results."""

    workload: Workload
    """The kind of data."""
    family: str = "gpt"
    """The base's family: Llama (gpt) or T5."""
    dtype: str = "fp32"
    """The dtype of weights and activations."""
    method: str = "ia3"
    """The adapters' method; none for generation."""

    @property
    def name(self) -> str:
        """The row's name."""
        parts = [self.workload.name, self.family, self.dtype]
        return "-".join(parts if self.workload.generation else [*parts, self.method])

    @property
    def base(self) -> str:
        """The base's name (benchmarks/base_models.py)."""
        return {"gpt": "smollm2", "t5": "t5"}[self.family] + ("-short" if self.workload.short else "")

    @property
    def base_title(self) -> str:
        """The base's name in the table."""
        model = {"gpt": "SmolLM2-135M", "t5": "random T5 v1.1-small"}[self.family]
        return f"{model}, first layers" if self.workload.short else model


def default_cells() -> list[Cell]:
    """Return the rows of a run without --all."""
    squad = WORKLOADS[0]
    others = [Cell(squad, dtype="bf16"), Cell(squad, family="t5"), Cell(squad, method="adapter")]
    return [*map(Cell, WORKLOADS), *others]


def all_cells() -> Iterator[Cell]:
    """Yield the rows of a run with --all: those of a default run first."""
    first = default_cells()
    yield from first
    for workload, family, dtype, method in product(WORKLOADS, FAMILIES, DTYPES, METHODS):
        cell = Cell(workload, family, dtype, method)
        if workload.generation and (family != "gpt" or method != "ia3"):
            continue
        if cell not in first:
            yield cell


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, help="questions in the SQuAD v1.1 format; required to measure")
    for workload in WORKLOADS:
        fields = ", ".join(workload.task().fields())
        text = f"your own records: JSON Lines with {fields}" + ("" if workload.fields else ", or SQuAD's .json")
        parser.add_argument(f"--{workload.name}-file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--all", action="store_true", help="every workload, family, dtype and method")
    names = ", ".join(workload.name for workload in WORKLOADS)
    rows = f"rows to measure, separated by commas: workloads ({names}) or names such as {Cell(WORKLOADS[0]).name}"
    parser.add_argument("--only", metavar="ROWS", help=rows)
    parser.add_argument("--folder", type=Path, default=Path(__file__).with_name(".bases"), help="the base models")
    parser.add_argument("--pairs", type=int, default=0, help="how often our layouts are compared: 9 for a claim")
    parser.add_argument("--rounds", type=int, help="how often each side runs; default: that of the workload")
    parser.add_argument("--batch", type=int, help="the peer's batch and our micro_batch_size; default: the workload's")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side; default: 2")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has transformers and PEFT")
    parser.add_argument("--json", type=Path, help="where the results go too")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of such a file and end")
    options = parser.parse_args(arguments)
    if options.squad is None and options.table is None:
        parser.error("--squad is required")
    options.cells = list(all_cells() if options.all else default_cells())
    if options.only:
        wanted = options.only.split(",")
        found = [cell for cell in all_cells() if {cell.name, cell.workload.name} & {*wanted}]
        options.cells = [cell for cell in found if cell.name in wanted or cell in options.cells]
        known = {cell.name for cell in found} | {cell.workload.name for cell in found}
        if unknown := [name for name in wanted if name not in known]:
            parser.error(f"--only {','.join(unknown)}: no such row; workloads are {names}")
    if options.batch:
        cells = options.cells
        options.cells = [replace(cell, workload=replace(cell.workload, batch=options.batch)) for cell in cells]
    return options


def main(arguments: list[str]) -> None:
    """Measure the rows that the results lack, and print the table."""
    options = parse(arguments)
    try:
        if options.table is None:
            from benchmarks.workload_rows import measure_all

            results = measure_all(options)
        else:
            results = Results.read(options.table)
    except UserError as error:
        sys.exit(str(error))
    print(table(results))
    if any("failed" in row for row in results.rows):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
