# SPDX-License-Identifier: Apache-2.0
"""Selection of the checkpoint to resume from: the newest undamaged one, if its record matches the job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nemo_launcher.adapters.archive import check_state, read_adapter
from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.sections import Learning
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.agreement import check_same, file_checksum
from nemo_launcher.runtime.earlier_training import CHECKPOINTS, overwrite_problems
from nemo_launcher.runtime.progress_file import SUMMARY_NAME
from nemo_launcher.training import record as records
from nemo_launcher.training.checkpoint_content import TrainingContent, read_training
from nemo_launcher.training.checkpoint_file import unreadable
from nemo_launcher.training.checkpoint_header import DamagedCheckpointError, ForeignCheckpointError
from nemo_launcher.training.position import Position
from nemo_launcher.training.record import BaseRecord, TrainingRecord

DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class Start:
    """The starting point of a job."""

    path: str | None = None
    """The checkpoint to resume from; None for a new training."""
    step: int = 0
    """Completed optimizer steps."""
    base: BaseRecord | None = None
    """The record of the base that the checkpoint was trained with."""
    finished: str | None = None
    """The message for a training that has nothing left to do; None if there is something to do."""
    kept: dict[str, object] | None = None
    """The numbers that keys which say `auto` had become in the checkpoint's training; None without a checkpoint."""
    row_costs: dict[str, object] | None = None
    """The costs of rows by which the checkpoint's training cut its batches (runtime.row_costs); None if unknown."""


def checkpoints_folder(job: Loaded[Learning]) -> Path:
    """Return the folder of a job's checkpoints."""
    return Path(os.path.realpath(job.section.exp_manager.explicit_log_dir)) / CHECKPOINTS


def find_start(job: Loaded[Learning], record: TrainingRecord, automatic: Sequence[str] = ()) -> Start:
    """Return the starting point of a job. Rank 0 decides for all ranks, which must all call this.

    record: of this job (training.record). automatic: the keys that say `auto` in it; Start.kept has the checkpoint's
    numbers for them. Raises UserError if the checkpoint's record does not match, if no checkpoint
    is intact, or if a rank has a different file at its path.
    """
    start = Start(**ranks.decide_on_rank_zero(lambda: asdict(_find_start(job, record, automatic))))
    path = start.path
    if path is not None and start.finished is None:
        check_same(lambda: {path: file_checksum(path)})
    return start


def check_base(start: Start, base: BaseRecord, job: Loaded[Learning]) -> None:
    """Raise UserError if `base` is not the base that the checkpoint was trained with."""
    if start.base is not None:
        problems = records.changed_base(start.base, base, job.section.model.language_model_path, _fix(job))
        if problems:
            raise UserError(problems[:10])


def _find_start(job: Loaded[Learning], record: TrainingRecord, automatic: Sequence[str]) -> Start:
    found = _newest_whole(job)
    if found is None:
        return Start()
    path, content = found
    before, fix = content["record"], f"{_fix(job)}; if {path.name} belongs to another training, move it away"
    if not before:  # saved outside a job
        return Start(str(path), content["global_step"], row_costs=content.get("row_costs"))
    kept = {key: value_of(before["config"], key) for key in automatic}
    after: TrainingRecord = {**record, "config": with_values(record["config"], kept)}
    problems = records.changed_settings(before, after, fix)
    if problems:
        raise UserError(problems[:10])
    problems = records.changed_data(before, record, job.section.model.data, fix)
    if problems:
        raise UserError(problems[:10])
    finished = _finished(content, job, Path(path))
    if finished is None:
        for line in (records.environment_changes(before, record), records.dropout_changes(before, record)):
            if line is not None:
                print(line, flush=True)
    return Start(str(path), content["global_step"], before["base"], finished, kept, content.get("row_costs"))


def _fix(job: Loaded[Learning]) -> str:
    folder = checkpoints_folder(job).parent
    return f"undo the change, train in another folder (run.results_dir), or start over: remove {folder}"


def _newest_whole(job: Loaded[Learning]) -> tuple[Path, TrainingContent] | None:
    """Return the checkpoint to resume from and its content, or None for a new training."""
    manager, chosen = job.section.exp_manager, job.section.trainer.resume_from_checkpoint
    folder = checkpoints_folder(job)
    replaced = overwrite_problems(job.section)
    if manager.resume_if_exists or (replaced and records.is_restarted()):
        found = _newest_in(folder)
        if found is not None and manager.resume_if_exists:
            if chosen and not _is_same_file(found[0], chosen):
                print(
                    f"trainer.resume_from_checkpoint is not used: {folder} has {found[0].name}",
                    flush=True,
                )
            return found
        if found is not None and records.is_of_this_job(found[1]["record"]):
            print(f"this job was requeued: it resumes from {found[0]}", flush=True)
            return found
    if replaced:
        raise UserError(replaced)
    if chosen:
        return Path(chosen), _chosen(Path(chosen))
    if manager.resume_if_exists and not manager.resume_ignore_no_checkpoint:
        key = "exp_manager.resume_ignore_no_checkpoint"
        raise UserError(Problem(str(folder), "holds no checkpoint to resume from", f"to start anew: {key}=True"))
    return None


def _is_same_file(one: Path, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _chosen(path: Path) -> TrainingContent:
    """Return the content of the checkpoint in trainer.resume_from_checkpoint."""
    if not path.is_file():
        what = "is a folder, not a checkpoint" if path.is_dir() else "no such file"
        raise UserError(
            Problem(f"trainer.resume_from_checkpoint: {path}", what, "give the .ckpt of an earlier training")
        )
    try:
        return read_training(path)
    except (DamagedCheckpointError, ForeignCheckpointError) as error:
        raise unreadable(f"trainer.resume_from_checkpoint: {path}", error) from error


def _newest_in(folder: Path) -> tuple[Path, TrainingContent] | None:
    """Return the newest intact checkpoint in a folder, and rename damaged ones.

    Raises UserError if there are only damaged checkpoints, or only those of an older release.
    """
    whole: list[tuple[_Age, Path, TrainingContent]] = []
    foreign = []
    for path in sorted(folder.glob("*.ckpt")):
        if not path.is_file():
            continue
        try:
            content = read_training(path)
            whole.append((_age(path, content), path, content))
        except ForeignCheckpointError as error:
            foreign.append((path, error))
        except (DamagedCheckpointError, UserError) as error:
            _set_aside(path, error)
    if whole:
        _, path, content = max(whole, key=lambda entry: entry[0])
        return path, content
    if foreign:
        raise UserError([problem for path, error in foreign for problem in unreadable(path, error).problems])
    aside = sorted(folder.glob(f"*{DAMAGED}*"))
    if aside:
        what = f"has no intact checkpoint: {len(aside)} damaged, such as {aside[-1].name}"
        fix = f"copy an intact one back as *.ckpt, or start over: remove {folder.parent}"
        raise UserError(Problem(str(folder), what, fix))
    return None


_Age = tuple[int, int, bool, bool, int, str]


def _age(path: Path, content: TrainingContent) -> _Age:
    """Return a sort key for checkpoints: the newest has the largest."""
    position = Position(**content["position"])
    done = position.epochs_ended, position.validated, bool(content["finished"])
    return (position.step, *done, path.stat().st_mtime_ns, path.name)


def _is_whole(adapter: Path) -> bool:
    try:
        check_state(read_adapter(adapter)[1], str(adapter))
    except UserError:
        return False
    return True


def _set_aside(path: Path, error: Exception) -> None:
    target = path.with_name(path.name + DAMAGED)
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}{DAMAGED}{number}")
    print(f"{path} is damaged ({_reason(error)}); renamed to {target.name}", flush=True)
    with contextlib.suppress(OSError):  # in an unwritable folder it is skipped
        path.rename(target)


def _reason(error: Exception) -> str:
    return error.problems[0].what if isinstance(error, UserError) else str(error)


def _finished(content: TrainingContent, job: Loaded[Learning], path: Path) -> str | None:
    """Return the message for a finished training with all its outputs; None if something is left to do."""
    position = Position(**content["position"])
    trainer, before = job.section.trainer, content["record"]["config"]["trainer"]
    same_end = all(getattr(trainer, key) == value_of(before, key) for key in ("max_steps", "max_epochs"))
    own = path.parent == checkpoints_folder(job)
    # without save_last no checkpoint is saved at the end, but the summary is written after it
    saves_last = job.section.exp_manager.checkpoint_callback_params.save_last
    if not ((content["finished"] or not saves_last) and own and (position.stopped or same_end)):
        return None
    adapter = Path(job.section.model.nemo_path)
    summary = records.finished_summary(Path(job.section.exp_manager.explicit_log_dir) / SUMMARY_NAME)
    steps = value_of(summary, "steps")
    at_end = steps == position.step or (not saves_last and isinstance(steps, int) and steps > position.step)
    if not at_end or not _is_whole(adapter):
        return None
    reason = f" (ended by {position.stopped})" if position.stopped else ""
    return f"training is finished: {steps} steps{reason}; nothing to do, the adapter is {adapter}"
