# SPDX-License-Identifier: Apache-2.0
"""Logits, greedy tokens and gradients of every decoder architecture against transformers, as a table:

    python benchmarks/families.py --json FILE.json [--only NAME...]

The models are random and tiny (tests/conformance/families/models.py). FILE.json has the figures of each configuration;
the table has the largest of each architecture. The exit status is 1 if a figure is too large.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_launcher.files.atomic import write_json
from nemo_launcher.runtime.quiet import quiet_libraries
from tests.conformance.families.checks import check, exceeded
from tests.conformance.families.models import FAMILIES

Figures = Mapping[str, float]
_COLUMNS = {
    "logits": "logits",
    "gradients": "gradients, relative",
    "adapted_logits": "IA3 in the weights",
    "peft_ia3": "IA3 in PEFT",
    "peft_lora": "LoRA in PEFT",
}


def table(results: Mapping[str, Figures]) -> Iterator[str]:
    """Yield the lines of a Markdown table with the largest figures of each architecture."""
    yield f"| architecture | configurations | {' | '.join(_COLUMNS.values())} |"
    yield f"|{' --- |' * (len(_COLUMNS) + 2)}"
    for prefix in dict.fromkeys(FAMILIES[name].prefix for name in results):
        own = [figures for name, figures in results.items() if FAMILIES[name].prefix == prefix]
        cells = " | ".join(f"{max(figures[key] for figures in own):.1e}" for key in _COLUMNS)
        yield f"| {prefix} | {len(own)} | {cells} |"


def main() -> int:
    """Check the configurations, write their figures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the file of the figures")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="the beginnings of names")
    options = parser.parse_args()
    quiet_libraries()
    results: dict[str, Figures] = {}
    problems = []
    for name in (name for name in FAMILIES if name.startswith(tuple(options.only))):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            results[name] = check(Path(folder), FAMILIES[name])
        problems += [f"{name}: {problem}" for problem in exceeded(dict(results[name]))]
        write_json(options.json, results)
    print("\n".join([*table(results), *problems]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
