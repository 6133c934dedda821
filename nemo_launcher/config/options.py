# SPDX-License-Identifier: Apache-2.0
"""Check main.py's options, which are Hydra's, before Hydra's own parser prints its usage and exits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from nemo_launcher import places
from nemo_launcher.config.sections.top_level import TopLevel
from nemo_launcher.errors import Problem, UserError, did_you_mean, nearest

# useful options; the others are accepted but not suggested
SUGGESTED = ("--help", "--cfg", "--multirun", "--config-name", "--config-dir")


WITH_VALUE = ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p", "--cfg", "-c")
"""Options whose value is the next argument."""
_DRY_RUN_ALIASES = ("dry-run", "dry_run", "dryrun", "test-only", "debug")
"""Names in other programs for a launch that starts nothing."""


def check_options(arguments: Sequence[str]) -> None:
    """Raise UserError for unknown options, options without their value, and folders that do not exist."""
    parser = get_args_parser()
    known = list(parser._option_string_actions)
    problems = [problem for argument in arguments if (problem := _unknown(argument, known)) is not None]
    if problems:
        raise UserError(problems)

    def refuse(message: str) -> NoReturn:
        what = message.replace("unrecognized arguments", "unknown arguments")
        raise UserError(Problem("command line", what, f"{places.LAUNCH} --help lists the options"))

    vars(parser)["error"] = refuse  # set on this parser only, which would print its usage and exit
    options, rest = parser.parse_known_args([argument for argument in arguments if "=" not in argument[:1]])
    if rest and not options.overrides:
        options.overrides = rest
    if options.config_dir is not None and not Path(options.config_dir).is_dir():
        where = f"--config-dir {options.config_dir}"
        raise UserError(Problem(where, "is not a folder", "name the folder with your YAML files"))
    if options.config_path is not None and "://" not in options.config_path:
        folder = _in_place_of_conf(options.config_path)
        if not folder.is_dir():
            fix = "name a folder to replace conf/; to add your files to conf/, use --config-dir FOLDER"
            raise UserError(Problem(f"--config-path {options.config_path}", "is not a folder", fix))


def overrides_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with overrides before options, as Hydra's parser accepts no option between overrides.

    An option at the end without its value stays there, so that the parser reports it.
    """
    options: list[str] = []
    overrides: list[str] = []
    before = ""
    for argument in arguments:
        is_option = argument.startswith("-") or _takes_value(before)
        (options if is_option else overrides).append(argument)
        before = argument
    return overrides + options


def _takes_value(argument: str) -> bool:
    """Return whether an argument is an option with a value, or an abbreviation of one, which Hydra accepts."""
    return argument in WITH_VALUE or (len(argument) > 2 and any(name.startswith(argument) for name in WITH_VALUE))


def with_config_path(arguments: Sequence[str]) -> list[str]:
    """Return checked arguments with an absolute --config-path, which Hydra would resolve inside this package."""
    options, _ = get_args_parser().parse_known_args([argument for argument in arguments if "=" not in argument[:1]])
    if options.config_path is None or "://" in options.config_path:
        return list(arguments)
    # the last occurrence takes effect
    return [*arguments, "--config-path", str(_in_place_of_conf(options.config_path))]


def _in_place_of_conf(given: str) -> Path:
    """Return the folder of --config-path: in the working directory or, as in Hydra, beside main.py."""
    folder = Path(given).expanduser().absolute()
    beside = places.CONF.parent / given
    return beside if not folder.is_dir() and not places.INSTALLED and beside.is_dir() else folder


def _unknown(argument: str, known: list[str]) -> Problem | None:
    name, equals, value = argument.partition("=")
    if not argument.startswith("-") or name in known or any(option.startswith(name) for option in known):
        return None
    key = name.lstrip("-")
    if equals:
        return Problem(argument, "overrides are written without dashes", f"{key}={value}")
    switch = "debug" if key in _DRY_RUN_ALIASES else key
    if switch in TopLevel.__dataclass_fields__ or switch in ("stages", "cluster_type"):
        value = "True" if switch == "debug" else "VALUE"
        return Problem(argument, "is not an option", f"overrides are written without dashes: {switch}={value}")
    match = nearest(name, SUGGESTED)
    if match is None and ("." in key or "_" in key):
        return Problem(argument, "is not an option", f"overrides are written without dashes: {key}=VALUE")
    return Problem(argument, "is not an option", did_you_mean(name, SUGGESTED))
