# SPDX-License-Identifier: Apache-2.0
"""Writer of README.md's quickstart table from the summary.json of both quickstarts: `make figures`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
SUMMARIES = {
    "adapter": REPOSITORY / "launcher_scripts/results/quickstart/summary.json",
    "IA3": REPOSITORY / "launcher_scripts/results/quickstart_ia3/summary.json",
}
BEGIN, END = "<!-- quickstart-figures -->\n", "<!-- /quickstart-figures -->\n"


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """Return the table, with the frozen base's scores from the first summary."""
    base = next(iter(summaries.values()))["base"]
    lines = [
        "| | exact match | F1 | trained parameters | samples/s | tokens/s | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| frozen base | {base['em']:.1%} | {base['f1']:.1%} | | | | |",
    ]
    for name, s in summaries.items():
        lines.append(
            f"| base + {name} | {s['adapter']['em']:.1%} | {s['adapter']['f1']:.1%} | {s['trainable_parameters']:,} "
            f"({s['trainable_share']:.2%}) | {s['samples_per_second']:.1f} | {s['tokens_per_second']:,.0f} "
            f"| {s['peak_memory_gib']:.2f} GiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table between the two markers of README.md."""
    absent = [str(path) for path in SUMMARIES.values() if not path.is_file()]
    if absent:
        sys.exit(f"run `make quickstart quickstart-ia3` first: {', '.join(absent)} do not exist")
    summaries = {name: json.loads(path.read_text()) for name, path in SUMMARIES.items()}
    readme = REPOSITORY / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table(summaries) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
