# SPDX-License-Identifier: Apache-2.0
"""The console verb `merge`: one adapter of several. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.new_folder import new_nemo
from nemo_launcher.runtime.startup import quick_imports

_TEXT = "merge adapters of one method and base: LoRA exactly, others as an average of their weights"


def _add_merge(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("adapters", nargs="+", metavar="ADAPTER.nemo", help="two or more adapters")
    weights = "a factor for each adapter (default: equal shares that add up to 1); without LoRA they must add up to 1"
    verb.add_argument("--weights", nargs="+", type=float, metavar="W", help=weights)
    verb.add_argument("--output", required=True, metavar="ADAPTER.nemo", help="the new file; it must not exist")
    verb.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> int:
    count, weights = len(options.adapters), options.weights
    problems = new_nemo(options.output, "--output")
    if count < 2:
        problems.append(Problem("ADAPTER.nemo", "only one is given", "name two or more"))
    if weights is not None and len(weights) != count:
        what = f"has {len(weights)} numbers for {count} adapters"
        problems.append(Problem("--weights", what, "give one for each, as in --weights 0.7 0.3"))
    if weights is not None and not all(map(math.isfinite, weights)):
        problems.append(Problem("--weights", "has a number that is not finite", "give finite numbers"))
    if problems:
        raise UserError(problems)
    with quick_imports():
        from nemo_launcher.adapters.merging import SUM, merge_adapters
    method, what = merge_adapters(options.adapters, weights or [1 / count] * count, options.output)
    exact = "exact" if what == SUM else "its effect is not the average of theirs"
    print(f"{options.output}: {method}, the {what} of {count} adapters ({exact})")
    return 0


MERGE_VERBS = {"merge": (_add_merge, _TEXT)}
