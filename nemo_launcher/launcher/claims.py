# SPDX-License-Identifier: Apache-2.0
"""The record of a job's outputs, `<job>_outputs.json` in its folder.

Each path is entered before the file is written, so that even a killed job leaves no file without an owner.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.clusters.job import config_file, private
from nemo_launcher.clusters.record import SUFFIX as RECORD_SUFFIX
from nemo_launcher.config.older_names import with_current_names
from nemo_launcher.errors import UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import load_json
from nemo_launcher.files.foreign_yaml import load_yaml
from nemo_launcher.files.paths import absolute, is_below
from nemo_launcher.launcher.stage import Output, Stage

CLAIMS_SUFFIX = "_outputs.json"


def claims_file(stage: Stage) -> Path:
    """Return the path of `<job>_outputs.json`, the record of outputs."""
    return stage.folder / f"{stage.job_name}{CLAIMS_SUFFIX}"


def claims(stage: Stage) -> list[Path]:
    """Return the outputs that the job has made or started to make; empty if it has no readable record."""
    try:
        value = load_json(claims_file(stage))
    except (OSError, UserError):
        return []
    paths = value.get("outputs") if isinstance(value, dict) else None
    names = [path for path in paths if isinstance(path, str) and "\0" not in path] if isinstance(paths, list) else []
    return [absolute(stage.folder / name) for name in names]


def claim(stage: Stage, outputs: Sequence[Output]) -> None:
    """Add outputs to the job's record; paths in the job's folder are relative, so that the folder may be moved."""
    known = claims(stage)
    new = list(dict.fromkeys([*known, *(absolute(output.path) for output in outputs)]))
    if new == known and claims_file(stage).exists():
        return
    _write_claims(stage, new)


def claim_existing(stage: Stage) -> None:
    """Start the record with the outputs that exist, after check_outputs has accepted them at launch.

    The job adds the rest. An existing record is kept, since the job may have refused files that exist.
    """
    if not claims_file(stage).exists():
        claim(stage, [output for output in stage.writes() if output.path.exists() and output.kind != "data"])


def withdraw(stage: Stage, *, keep_record: bool) -> None:
    """Remove outputs from the record that the job did not make, as a file placed there later is not the job's.

    Outputs that it made are added again, since another process of the same job may have removed them.
    """
    own = [absolute(output.path) for output in stage.writes()]
    made = [path for path in dict.fromkeys([*claims(stage), *own]) if os.path.lexists(path)]
    with contextlib.suppress(OSError):  # on a full disk, which the job itself reports
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
    """Return the outputs of an earlier start of this job, inferred from its folder without a record of outputs.

    At launch the configuration in the folder is that of the earlier start. In a script it is the current one, which is
    used only if no launcher has started a record.
    """
    folder, configuration = stage.folder, config_file(stage.folder, stage.job_name)
    if claims_file(stage).exists() if not at_launch else not configuration.is_file():
        return set()
    inside = {absolute(output.path) for output in stage.writes() if is_below(output.path, folder)}
    if not at_launch or not (folder / f"{stage.job_name}{RECORD_SUFFIX}").is_file():
        return inside
    try:
        section = with_current_names(load_yaml(configuration), stage.name)
        if not isinstance(section, dict):
            return inside
        before = type(stage)(section, stage.choice, str(stage.data_dir))
        return inside | {absolute(output.path) for output in before.writes()}
    except (OSError, UserError, AttributeError, KeyError, TypeError, ValueError, StopIteration):
        return inside  # edited by hand, or from another release
