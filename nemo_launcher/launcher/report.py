# SPDX-License-Identifier: Apache-2.0
"""Show all mistakes, grouped by section, each with its fix."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from nemo_launcher.config.constraints import control_character
from nemo_launcher.errors import Problem, environment_message
from nemo_launcher.launcher.masking import hide_in
from nemo_launcher.launcher.suggestions import tried

LONGEST = 3000
"""Maximum characters of a problem's part that are shown in full."""


def show_problems(problems: Iterable[Problem]) -> None:
    """Print the problems to standard error."""
    problems = shown_problems(problems)
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    lines = [f"{count}; nothing was launched:"]
    sections = list(dict.fromkeys(_section(problem) for problem in problems))
    for problem in sorted(problems, key=lambda problem: sections.index(_section(problem))):
        lines += ["", str(problem)]
    _print_error("\n".join(lines))


def shown_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Return each distinct problem as it is shown: shortened, with a fix that was tried, and secrets masked."""
    shown = dict.fromkeys(_short(tried(problem)) for problem in problems)
    return [Problem(*map(hide_in, _parts(problem))) for problem in shown]


def _short(problem: Problem) -> Problem:
    """Return the problem with overlong parts shortened in the middle."""
    return Problem(*(text if len(text) <= LONGEST else f"{text[:300]} ... {text[-100:]}" for text in _parts(problem)))


def _parts(problem: Problem) -> tuple[str, str, str]:
    return problem.where, problem.what, problem.fix


def show_environment(error: OSError) -> None:
    """Print an operating system error as a message."""
    message = environment_message(error) or f"{error.filename or 'the system'}: {error.strerror or error}"
    _print_error(message)


def show_warnings(problems: Iterable[Problem]) -> None:
    """Print warnings, which do not stop the launch, to standard error."""
    for problem in problems:
        _print_error(f"warning: {tried(problem)}")


def _print_error(text: str) -> None:
    """Print text to standard error with secrets masked, in the terminal's encoding."""
    text = "".join(c if control_character(c, lines=True) is None else ascii(c)[1:-1] for c in hide_in(text))
    encoding = sys.stderr.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def in_runs(problem: Problem, labels: list[str], count: int) -> Problem:
    """Add the names of the runs with a problem, unless all `count` runs of the sweep have it."""
    if len(labels) == count:
        return problem
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return Problem(problem.where, f"{problem.what} (run {'; '.join(labels[:3])}{more})", problem.fix)


def _section(problem: Problem) -> str:
    return problem.where.split(".")[0].split(" ")[0]
