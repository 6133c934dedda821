# SPDX-License-Identifier: Apache-2.0
"""The console verb `lm-eval`: lm-evaluation-harness on a base model and an adapter. Imports nothing heavy."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import first_line

INSTALL = "pip install 'nemo-adapter-launcher[lm-eval]'"
_TEXT = "run lm-evaluation-harness with its own arguments (nemo-launcher lm-eval --base BASE.nemo --tasks TASK)"
_REPLACED = {
    "--model": "names the model, which is this base",
    "--model_args": "has the model's arguments, which are --base, --adapter, --precision and --set",
    "--apply_chat_template": "needs the tokenizer of a Hugging Face model",
}
"""Arguments of the harness that are not accepted, and why."""
_SHORT = {"-M": "--model", "-a": "--model_args"}


def _add_lm_eval(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s --base FILE.nemo [--adapter FILE.nemo] [arguments of `lm-eval run`]"
    verb.epilog = "All other arguments are those of `lm-eval run`, which `lm-eval run --help` lists."
    verb.add_argument("--base", required=True, metavar="FILE.nemo", help="the frozen base model")
    verb.add_argument("--adapter", metavar="FILE.nemo", help="an adapter trained on this base model")
    verb.add_argument("--precision", default="32", help="32, bf16 or 16 (default 32)")
    settings = "change a key of the adapter's configuration, such as data.add_bos=True; may be repeated"
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=settings)
    verb.set_defaults(run=_lm_eval)


def _lm_eval(options: argparse.Namespace) -> int:
    problems = _refused(options.passed_on) + _unreadable([options.base, options.adapter])
    if importlib.util.find_spec("lm_eval") is None:
        problems.append(Problem("lm-eval", "lm-evaluation-harness is not installed", INSTALL))
    if problems:
        raise UserError(problems)
    names = ("base", "adapter", "precision", "settings")
    model = {name: getattr(options, name) for name in names if getattr(options, name)}
    _run(model, options.passed_on)
    return 0


def _run(model: dict[str, object], arguments: Sequence[str]) -> None:
    """Run the harness's own command line. Raises UserError for what it refuses."""
    from lm_eval.__main__ import cli_evaluate

    from nemo_launcher.evaluation.harness_model import NAME  # registers the model

    sys.argv[:] = ["lm-eval", "run", "--model", NAME, "--model_args", json.dumps(model), *arguments]
    try:
        cli_evaluate()
    except UserError:
        raise
    except (ValueError, KeyError, OSError) as error:  # what the harness raises for tasks and options
        fix = "lm-eval run --help lists its arguments, and lm-eval ls tasks its tasks"
        raise UserError(Problem("lm-eval", first_line(error), fix)) from error


def _refused(arguments: Sequence[str]) -> list[Problem]:
    """Return a problem for each argument that this verb sets itself or that the model cannot follow."""
    given = [word.partition("=")[0] for word in arguments]
    names = dict.fromkeys(_SHORT.get(word, word) for word in given)
    return [Problem(name, _REPLACED[name], "leave it out") for name in names if name in _REPLACED]


def _unreadable(paths: Sequence[str | None]) -> list[Problem]:
    problems: list[Problem] = []
    for path in paths:
        try:
            if path is not None:
                read_outline(Path(path))
        except UserError as error:
            problems += error.problems
    return problems


HARNESS_VERBS = {"lm-eval": (_add_lm_eval, _TEXT)}
