# SPDX-License-Identifier: Apache-2.0
"""What a launch says about the data of a training, beside the estimate of what it needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nemo_launcher.data.duplicates import Contents
from nemo_launcher.data.records import read_records, size_of, table_header
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.launcher.base_sizes import stacks_of
from nemo_launcher.launcher.estimate import measured_lengths, token_limit, training_records
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Evaluation, Learning

COMPARED_RECORDS, COMPARED_BYTES = 2000, 2 << 20
"""Larger data is compared in the job, which reads all of it; comparing this much takes a tenth of a second."""

_TOLD_SAVING = 0.05


Columns = Mapping[str, str] | None


def describe_data(stage: Stage, stages: Sequence[Stage], probe: LaunchProbe) -> list[str]:
    """Return lines on a stage's tables, and on a training's samples and duplicates. None is about unknown data.

    stages: all of the launch.
    """
    tables = [f"{stage.name}: {line}" for line in _tables(stage)]
    if not isinstance(stage, Learning):
        return tables
    data, tests = stage.section.model.data, _test_files(stage, stages)
    key = str([data.train_ds, data.validation_ds, tests, stage.section.model.task_templates])
    found = [_samples(stage, probe), probe.common_records(key, lambda: _common(stage, tests, probe))]
    return [*tables, *(f"{stage.name}: {line}" for line in found if line)]


def _tables(stage: Stage) -> Iterator[str]:
    """Yield a line on the header of each CSV and TSV file, once for files with the same one."""
    files: dict[str, list[str]] = {}
    for _, path in stage.data_files():
        header = table_header(path)
        if header is not None:
            files.setdefault(str(header), []).append(str(path))
    for told, paths in files.items():
        yield f"{', '.join(dict.fromkeys(paths))}: {told}"


def _samples(stage: Learning, probe: LaunchProbe) -> str | None:
    """Return a line on the lengths of samples, of which the first ones were measured for the estimate."""
    records, lengths = training_records(stage, probe), measured_lengths(stage, probe)
    if not records or lengths is None:
        return None
    data = stage.section.model.data
    stacks = stacks_of(probe.known_outline(Path(stage.section.model.language_model_path)))
    is_t5 = "encoder" in (stacks or {})
    adds_end = data.add_eos and any(entry.template_format != "chat" for entry in stage.section.model.task_templates)
    end, answer_end = int(adds_end), int(is_t5 or adds_end)  # a T5's answer ends with a token in any case
    longest = min(token_limit(stage, probe), lengths.longest + end)
    line = f"{records:,} training records of about {lengths.mean + end:,.0f} tokens (longest {longest:,.0f}), "
    line += f"{lengths.answer + answer_end:,.0f} in the loss"
    saved = 1 - lengths.own / max(1.0, lengths.mean)
    shares = data.share_prefix and not is_t5  # a T5 has no common prefixes
    if shares and saved >= _TOLD_SAVING:
        line += f"; shared prefixes save up to {100 * saved:.0f}%"
    return line


def _common(stage: Learning, tests: list[str], probe: LaunchProbe) -> str | None:
    """Return a line on duplicates in the training data, and on records that it has in common with other data.

    It is empty if there are none, and None if the data is absent or too large.
    """
    data = stage.section.model.data
    others = {"validation": data.validation_ds, "test": tests}
    if not _are_few([*data.train_ds, *(path for paths in others.values() for path in paths)], probe):
        return None
    try:
        tasks = Tasks.of(TaskTemplate.from_config(vars(template)) for template in stage.section.model.task_templates)
        train = _contents(data.train_ds, tasks, data.fields)
        repeated = len(train.repeated)
        found = [f"{repeated:,} duplicate{'s' if repeated > 1 else ''}"] if repeated else []
        for name, paths in others.items():
            common, count = _prompts_in(train, paths, tasks, data.fields)
            found += [f"{common:,} of {count:,} {name} prompts"] if common else []
    except (UserError, OSError):  # the checks of data files report it
        return None
    return f"in the training data: {', '.join(found)} (nemo-launcher data FILES lists them)" if found else ""


def _test_files(stage: Learning, stages: Iterable[Stage]) -> list[str]:
    """Return the test data of a training: what it names, and what evaluations of its adapter read."""
    adapters = {path.absolute() for path in stage.outputs()}
    tests = [other.section for other in stages if isinstance(other, Evaluation)]
    mine = [section for section in tests if Path(section.adapter_model_file).absolute() in adapters]
    named = stage.section.model.data.test_ds or []
    return list(dict.fromkeys([*named, *(path for section in mine for path in section.data_paths)]))


def _are_few(paths: Iterable[str], probe: LaunchProbe) -> bool:
    """Return whether all files are there and small enough to be compared."""
    files = [Path(path) for path in paths]
    with contextlib.suppress(OSError, UserError):
        if sum(map(size_of, files)) <= COMPARED_BYTES:
            counts = [probe.num_lines(file) for file in files]
            return None not in counts and sum(count or 0 for count in counts) <= COMPARED_RECORDS
    return False


def _records(paths: Iterable[str], columns: Columns) -> Iterator[tuple[str, dict[str, object]]]:
    for path in paths:
        yield from read_records(path, columns)


def _contents(paths: Iterable[str], tasks: Tasks, columns: Columns) -> Contents:
    contents = Contents(tasks)
    for where, record in _records(paths, columns):
        contents.add(record, where)
    return contents


def _prompts_in(train: Contents, paths: Iterable[str], tasks: Tasks, columns: Columns) -> tuple[int, int]:
    """Return how many records of files have a prompt of the training data, and how many records there are."""
    other, count = Contents(tasks), 0
    for count, (where, record) in enumerate(_records(paths, columns), start=1):  # noqa: B007
        other.add(record, where, [train])
    return len(other.common.get(0, [])), count
