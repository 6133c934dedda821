# SPDX-License-Identifier: Apache-2.0
"""`nemo-launcher report`: make reports anew and compare runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_launcher.errors import Problem, UserError, environment_message

if TYPE_CHECKING:
    from nemo_launcher.reports.runs import Run

COMPARISON_NAME = "comparison.html"


def _add_report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folders", nargs="+", metavar="DIR", help="job folders, or folders with jobs below them")
    output = f"the page that compares several runs (default: {COMPARISON_NAME} in DIR, or here for several DIR)"
    verb.add_argument("--output", metavar="FILE.html", help=output)
    verb.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    """Write the report of each run below the folders and compare the runs. Returns 1 if a report was not written."""
    from nemo_launcher.reports.comparison import text_table, write_comparison
    from nemo_launcher.reports.leaderboard import compare
    from nemo_launcher.reports.report import write_report
    from nemo_launcher.reports.runs import find_runs

    folders = [Path(name) for name in options.folders]
    problems = [Problem(str(path), "no such folder", "name a job folder") for path in folders if not path.is_dir()]
    if options.output is not None and Path(options.output).suffix != ".html":
        problems.append(Problem("--output", f"{options.output} is not an HTML file", "--output comparison.html"))
    if problems:
        raise UserError(problems)
    found = find_runs(folders, tell=lambda line: print(line, file=sys.stderr))
    runs = [run for run in found if run.results is not None and os.path.isdir(run.results)]
    if not runs:
        shown = ", ".join(map(str, folders))
        raise UserError(Problem(shown, "has no results of a training or evaluation", "name the folder of a job"))
    status = 0
    for run in runs:
        try:
            print(f"report: {write_report(run)}{_elsewhere(run)}")
        except (OSError, UserError) as error:
            print(f"{run.config_file}: the report was not written: {_cause(error)}", file=sys.stderr)
            status = 1
    comparison = compare(runs)
    if len(comparison.rows) > 1 or options.output is not None:
        default = (folders[0] if len(folders) == 1 else Path.cwd()) / COMPARISON_NAME
        path = default if options.output is None else Path(options.output)
        try:
            if options.output is None:
                _check_link(path)
            write_comparison(comparison, path.absolute())
            print(f"comparison: {path}\n")
        except (OSError, UserError) as error:
            print(f"the comparison was not written: {_cause(error)}", file=sys.stderr)
            status = 1
        print(text_table(comparison))
    return status


def _check_link(path: Path) -> None:
    """Raise UserError for a link in a folder that may be a stranger's, if it leads out of the folder."""
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise UserError(Problem(str(path), "is a link that leads out of the folder", "--output FILE.html"))


def _elsewhere(run: Run) -> str:
    """Return a remark about a report that is not where the run's configuration says."""
    if run.report_file == run.configured_report:
        return ""
    return f" (its configuration names {run.configured_report}, which is not in the folders named here)"


def _cause(error: OSError | UserError) -> str:
    return (environment_message(error) or str(error)) if isinstance(error, OSError) else str(error)


REPORT_VERBS = {"report": (_add_report, "write the reports of jobs anew and compare their results")}
"""The verbs of this room, for the console command."""
