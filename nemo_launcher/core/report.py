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
    sections = list(dict.fromkeys(_section(problem) for problem in problems))
    for problem in sorted(problems, key=lambda problem: sections.index(_section(problem))):
        lines += ["", str(problem)]
    print("\n".join(lines), file=sys.stderr)


def _section(problem: Problem) -> str:
    return problem.where.split(".")[0].split(" ")[0]
