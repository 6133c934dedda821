# SPDX-License-Identifier: Apache-2.0
"""What a job has made: `<job>_outputs.json` in its folder.

Each path is entered before anything is written to it, so that a kill at any moment leaves no file that nobody owns.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.clusters.job import config_file, private
from nemo_launcher.clusters.record import SUFFIX as RECORD_SUFFIX
from nemo_launcher.config.older_names import with_present_names
from nemo_launcher.errors import UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import load_json
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.files.paths import absolute, is_below
from nemo_launcher.launcher.stage import Output, Stage

CLAIMS_SUFFIX = "_outputs.json"


def claims_file(stage: Stage) -> Path:
    """`<job>_outputs.json`"""
    return stage.folder / f"{stage.job_name}{CLAIMS_SUFFIX}"


def claims(stage: Stage) -> list[Path]:
    """Return what the job has made or begun to make; nothing where no record of it can be read."""
    try:
        value = load_json(claims_file(stage))
    except (OSError, UserError):
        return []
    paths = value.get("outputs") if isinstance(value, dict) else None
    names = [path for path in paths if isinstance(path, str) and "\0" not in path] if isinstance(paths, list) else []
    return [absolute(stage.folder / name) for name in names]


def claim(stage: Stage, outputs: Sequence[Output]) -> None:
    """Enter outputs into the job's record; paths in the job's folder are relative, so that it may be moved."""
    known = claims(stage)
    new = list(dict.fromkeys([*known, *(absolute(output.path) for output in outputs)]))
    if new == known and claims_file(stage).exists():
        return
    _write_claims(stage, new)


def claim_present(stage: Stage) -> None:
    """Begin the record of outputs with what is there, when check_outputs has found nothing wrong with it at launch.

    The job enters the rest. A record that is there stays: the job may have refused what is there.
    """
    if not claims_file(stage).exists():
        claim(stage, [output for output in stage.writes() if output.path.exists() and output.kind != "data"])


def withdraw(stage: Stage, *, keep_record: bool) -> None:
    """Take back what the job has claimed and not made: a file that somebody puts there later is not its own.

    What it has made is entered again: another process of the same job, with other outputs, may have taken it out.
    """
    own = [absolute(output.path) for output in stage.writes()]
    made = [path for path in dict.fromkeys([*claims(stage), *own]) if os.path.lexists(path)]
    with contextlib.suppress(OSError):  # a full disk; the job tells of that itself
        if made or keep_record:
            _write_claims(stage, made)
        else:
            claims_file(stage).unlink(missing_ok=True)


def _write_claims(stage: Stage, paths: Sequence[Path]) -> None:
    folder = absolute(stage.folder)
    names = [str(path.relative_to(folder) if path.is_relative_to(folder) else path) for path in paths]
    with private():
        write_json(claims_file(stage), {"outputs": names})


def made_before(stage: Stage, *, at_launch: bool) -> set[Path]:
    """What an earlier start of this job has made as far as its folder tells without a record of outputs.

    At launch the job's configuration is that of the earlier start; in a script it is the present one, which counts only
    where no launcher has begun a record.
    """
    folder, configuration = stage.folder, config_file(stage.folder, stage.job_name)
    if claims_file(stage).exists() if not at_launch else not configuration.is_file():
        return set()
    inside = {absolute(output.path) for output in stage.writes() if is_below(output.path, folder)}
    if not at_launch or not (folder / f"{stage.job_name}{RECORD_SUFFIX}").is_file():
        return inside
    try:
        section = with_present_names(load_yaml(configuration), stage.name)
        if not isinstance(section, dict):
            return inside
        before = type(stage)(section, stage.choice, str(stage.data_dir))
        return inside | {absolute(output.path) for output in before.writes()}
    except (OSError, UserError, AttributeError, KeyError, TypeError, ValueError, StopIteration):
        return inside  # written by hand, or of another release
