# SPDX-License-Identifier: Apache-2.0
"""Check of a results folder for an earlier training, at launch and in the job before it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nemo_launcher.config.sections import Learning
from nemo_launcher.errors import Problem
from nemo_launcher.runtime.progress_file import SUMMARY_NAME

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints below exp_manager.explicit_log_dir."""


def overwrite_problems(section: Learning, key: Callable[[str], str] = str) -> list[Problem]:
    """Return a Problem if a training would start over and overwrite the results of an earlier one.

    section: the complete section of a learning stage; key: maps a dotted key of the stage to the form that users write.
    """
    manager, adapter = section.exp_manager, Path(section.model.nemo_path)
    results, resumes = Path(manager.explicit_log_dir), manager.resume_if_exists
    checkpoints = sorted((results / CHECKPOINTS).glob("*.ckpt*"))
    is_finished = (results / SUMMARY_NAME).is_file() and adapter.is_file()
    if resumes and (checkpoints or not is_finished or section.trainer.resume_from_checkpoint):
        return []
    left = [f"{len(checkpoints)} checkpoint(s), such as {checkpoints[-1].name}"] if checkpoints else []
    left += [f"the finished adapter {adapter}"] if is_finished else []
    if not left:
        return []
    where = key("exp_manager.resume_if_exists")
    why = "there is no checkpoint to resume from: training" if resumes else "False"
    what = f"{why} would start over and replace what is in {results}: {' and '.join(left)}"
    fix = f"train elsewhere: {key('run.results_dir')}=/another/folder; or remove {results}"
    return [Problem(where, what, f"resume it: {where}=True; {fix}" if checkpoints else fix)]
