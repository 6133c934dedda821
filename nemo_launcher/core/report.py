"""How mistakes are shown: all of them, grouped by section, each with its way out."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from nemo_launcher.errors import Problem


def show_problems(problems: Iterable[Problem]) -> None:
    """Print the problems to standard error."""
    problems = list(problems)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    lines = [f"{count}; nothing was launched:"]
    for problem in sorted(problems, key=lambda problem: problem.where.split(".")[0]):  # stable within a section
        lines += ["", str(problem)]
    print("\n".join(lines), file=sys.stderr)
