# SPDX-License-Identifier: Apache-2.0
"""The options of main.py: Hydra's own, checked before Hydra sees them, whose parser prints its usage and exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from nemo_launcher import places
from nemo_launcher.config.sections.top_level import TopLevel
from nemo_launcher.errors import Problem, UserError, did_you_mean, nearest

# those that make sense here; the others are accepted and not suggested
SUGGESTED = ("--help", "--cfg", "--multirun", "--config-name", "--config-dir")


_TRIES = ("dry-run", "dry_run", "dryrun", "test-only", "debug")
"""What other programs call a launch that starts nothing."""


def check_options(arguments: Sequence[str]) -> None:
    """Raise UserError for options that do not exist, that lack their value, and for an absent --config-dir."""
    parser = get_args_parser()
    known = list(parser._option_string_actions)
    problems = [problem for argument in arguments if (problem := _unknown(argument, known)) is not None]
    if problems:
        raise UserError(problems)

    def refuse(message: str) -> NoReturn:
        what = message.replace("unrecognized arguments", "not understood")
        raise UserError(Problem("command line", what, f"{places.LAUNCH} --help lists the options"))

    vars(parser)["error"] = refuse  # of this parser alone: it would print its usage and exit
    options, rest = parser.parse_known_args([argument for argument in arguments if "=" not in argument[:1]])
    if rest and not options.overrides:
        options.overrides = rest
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        where = f"--config-dir {options.config_dir}"
        raise UserError(Problem(where, "is no folder", "name the folder that holds your YAML files"))


def _unknown(argument: str, known: list[str]) -> Problem | None:
    name, equals, value = argument.partition("=")
    if not argument.startswith("-") or name in known or any(option.startswith(name) for option in known):
        return None
    key = name.lstrip("-")
    if equals:
        return Problem(argument, "overrides are written without dashes", f"{key}={value}")
    switch = "debug" if key in _TRIES else key
    if switch in TopLevel.__dataclass_fields__ or switch in ("stages", "cluster_type"):
        value = "True" if switch == "debug" else "VALUE"
        return Problem(argument, "is no option", f"overrides are written without dashes: {switch}={value}")
    match = nearest(name, SUGGESTED)
    if match is None and ("." in key or "_" in key):
        return Problem(argument, "is no option", f"overrides are written without dashes: {key}=VALUE")
    return Problem(argument, "is no option", did_you_mean(name, SUGGESTED))
