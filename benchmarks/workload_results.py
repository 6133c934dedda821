# SPDX-License-Identifier: Apache-2.0
"""The results of benchmarks/workloads.py: a JSON file that grows row by row, and a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.foreign import load_json

Row = dict[str, Any]

# title -> the row's field
COLUMNS = {
    "workload": "workload",
    "base": "base",
    "dtype": "dtype",
    "method": "method",
    "peer": "peer",
    "records": "samples",
    "peer_records": "peer_records",
    "tokens": "mean_length",
    "prefix": "common_prefix",
    "ours, s/record": "our_seconds_per_record",
    "ratio": "ratio",
    "at its best": "ratio_best",
    "plain": "ratio_plain",
    "without start-up": "ratio_without_startup",
    "lost to the best fixed layout": "lost_to_best_fixed",
    "pairs": "pairs",
    "memory": "memory_ratio",
    "gradient difference": "gradient_difference",
}
_DIGITS = {"mean_length": "{:.0f}", "our_seconds_per_record": "{:.3f}", "lost_to_best_fixed": "{:+.1%}"}
_DIGITS |= {"memory_ratio": "{:.2f}", "gradient_difference": "{:.1e}"}


@dataclass(slots=True)
class Results:
    """What has been measured."""

    rows: list[Row] = field(default_factory=list)
    """The rows, in the order of measurement."""
    machine: dict[str, Any] = field(default_factory=dict)
    """The machine of the last run."""
    versions: dict[str, Any] = field(default_factory=dict)
    """The versions of the packages of both sides."""
    products: list[Row] = field(default_factory=list)
    """The rates of products with frozen weights (benchmarks/products.py)."""

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return the results in a file. Raises UserError if they are unreadable."""
        if not path.is_file():
            raise UserError(Problem(str(path), "no such file", "give the file that --json has written"))
        content = load_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            raise UserError(Problem(str(path), "holds no results of this benchmark", "give another file to --json"))
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})

    def write(self, path: Path) -> None:
        """Write all results; the file is complete at any time."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def has(self, name: str, options: Mapping[str, Any]) -> bool:
        """Return whether a row was measured with these options, and did not fail."""
        return any(row["name"] == name and row["options"] == dict(options) and "failed" not in row for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a row in place of an earlier one with its name."""
        self.rows = [other for other in self.rows if other["name"] != row["name"]] + [row]


def table(results: Results) -> str:
    """Return the results as Markdown, with what they were measured on."""
    lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    lines += [_row(_shown(row, name) for name in COLUMNS.values()) for row in results.rows]
    failed = [f"{row['name']} failed: {row['failed']}" for row in results.rows if "failed" in row]
    return "\n".join([*_told(results), "", *lines, "", *_products(results.products), *failed])


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    return _DIGITS.get(name, "{:.1f}").format(value) if isinstance(value, float) else str(value)


def _told(results: Results) -> list[str]:
    machine = results.machine
    dates = sorted({row["date"] for row in results.rows})
    told = [" to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))]
    if machine:
        kinds = {"amx": "AMX", "avx512_bf16": "AVX-512 bf16", "avx512": "AVX-512"}
        has = ", ".join(f"{'' if machine.get(key) else 'no '}{kind}" for key, kind in kinds.items())
        told.append(f"{machine['threads']} threads on {machine['cores']} cores of an {machine['cpu']} ({has})")
    told += [f"{side}: {', '.join(f'{k} {v}' for k, v in found.items())}" for side, found in results.versions.items()]
    return ["; ".join(told)]


def _products(products: Sequence[Row]) -> list[str]:
    """Return the rates of products: a row for each dtype and shape, a column for each number of rows."""
    if not products:
        return []
    counts = sorted({row["rows"] for row in products})
    rates = {(row["dtype"], row["product"], row["direction"], row["rows"]): row["gflops"] for row in products}
    kinds = dict.fromkeys(key[:3] for key in rates)
    titles = ["dtype", "product", "direction", *(f"{count} rows" for count in counts)]
    lines = [
        _row([*kind, *(f"{rates[(*kind, count)]:.0f}" if (*kind, count) in rates else "" for count in counts)])
        for kind in kinds
    ]
    return ["GFLOP/s of products with frozen weights:", "", _row(titles), _row(["---"] * len(titles)), *lines, ""]
