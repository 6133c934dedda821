# SPDX-License-Identifier: Apache-2.0
"""Samples of whole data files, and the treatment of those that are too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.data.given_records import GivenRecords
from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.prompt_encoder import LIMIT_FIXES, SampleEncoder
from nemo_launcher.data.record_values import prepared
from nemo_launcher.data.records import read_records
from nemo_launcher.data.samples import S
from nemo_launcher.data.tasks import Tasks, template_problems
from nemo_launcher.data.templates import TaskTemplate, repeated_tasknames
from nemo_launcher.errors import Problem, UserError


def encode_files(
    paths: Sequence[str | Path | GivenRecords],
    templates: Sequence[TaskTemplate],
    encoder: SampleEncoder[S],
    *,
    max_dropped_share: float | None = 0.0,
    default_taskname: str | None = None,
    any_taskname: bool = False,
    withhold_answers: bool = False,
    columns: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
) -> list[S]:
    """Return the samples of data files or of records in memory, encoded by a family's prompt encoder.

    max_dropped_share: the fraction of samples that may be dropped as too long; None: none, and that cannot be changed.
    default_taskname: for records without a taskname; any_taskname: also for records with another one. withhold_answers:
    hide answer fields from the encoder, which would use them with nemo_compat. columns: as in `read_records`.
    Raises UserError like `stream_samples` and `report_lengths`.
    """
    samples = list(
        stream_samples(
            paths,
            templates,
            encoder,
            default_taskname=default_taskname,
            any_taskname=any_taskname,
            withhold_answers=withhold_answers,
            columns=columns,
        )
    )
    for remark in encoder.remarks(samples):
        report(remark)
    kept = [sample for sample in samples if len(sample.input_ids) <= encoder.max_seq_length]
    if len(kept) < len(samples):
        longest = max(samples, key=lambda sample: len(sample.input_ids))
        lengths = Lengths(len(samples), len(samples) - len(kept), len(longest.input_ids), longest.source)
        report_lengths(lengths, encoder, max_dropped_share, report)
    return kept


def stream_samples(
    paths: Sequence[str | Path | GivenRecords],
    templates: Sequence[TaskTemplate],
    encoder: SampleEncoder[S],
    *,
    default_taskname: str | None = None,
    any_taskname: bool = False,
    withhold_answers: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Iterator[S]:
    """Yield a sample for each record, including those that are too long; arguments as in `encode_files`.

    Raises UserError before the first sample for problems that affect all records, and after the last one with the
    problems of all files.
    """
    problems = [*repeated_tasknames([template.taskname for template in templates]), *encoder.problems(templates)]
    if problems:
        raise UserError(problems)
    tasks = Tasks.of(templates, default_taskname, any_name=any_taskname)
    for path in paths:
        found: list[Problem] = []
        try:
            for place, record in path if isinstance(path, GivenRecords) else read_records(path, columns):
                sample = _sample(record, place, tasks, encoder, found, withhold_answers=withhold_answers)
                if sample is not None:
                    yield sample
                if len(problems) + len(found) >= MAX_PROBLEMS:
                    break
        except UserError as error:
            found += error.problems
        problems += found
    if problems:
        raise UserError(problems)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Statistics of samples' lengths."""

    num_samples: int
    """The number of samples."""
    num_dropped: int
    """The number of samples dropped as too long."""
    longest: int
    """The number of tokens in the longest sample."""
    longest_source: str
    """`file:line` of the longest sample."""


def _sample(
    record: dict[str, object],
    where: str,
    tasks: Tasks,
    encoder: SampleEncoder[S],
    problems: list[Problem],
    *,
    withhold_answers: bool,
) -> S | None:
    """Return the sample of `record`, or None after adding its problems to `problems`."""
    template = tasks.find(record, where)
    if isinstance(template, Problem):
        problems.append(template)
        return None
    record = prepared(record, template, for_train=encoder.for_train)
    if withhold_answers:
        record = {name: value for name, value in record.items() if name != template.answer_field}
    modes = {"for_train": encoder.for_train, "nemo_compat": encoder.nemo_compat}
    found = template_problems(record, where, template, **modes)
    if not found:
        sample = encoder.encode(record, template, where)
        found = encoder.sample_problems(sample) or _empty_problems(sample, where, encoder)
    problems += found
    return None if found else sample


def _empty_problems(sample: S, where: str, encoder: SampleEncoder[S]) -> list[Problem]:
    if encoder.for_train and sample.num_trained_tokens == 0:
        return [Problem(where, "no token is left to train on", "fill the answer, or remove the line")]
    if not sample.input_ids:
        return [Problem(where, "the prompt has no tokens", "fill the fields, or remove the line")]
    return []


def report_lengths(
    lengths: Lengths, encoder: SampleEncoder[S], max_dropped_share: float | None, report: Callable[[str], None]
) -> None:
    """Report samples that are too long. Raises UserError if they are more than allowed, or all samples."""
    if not lengths.num_dropped:
        return
    what = (
        f"{lengths.num_dropped:,} of {lengths.num_samples:,} prompts are longer than "
        f"{encoder.max_seq_length:,} tokens; "
        f"the longest, {lengths.longest_source}, has {lengths.longest:,}"
    )
    some_are_left, share = lengths.num_dropped < lengths.num_samples, lengths.num_dropped / lengths.num_samples
    if some_are_left and share <= (max_dropped_share or 0.0):
        report(f"Dropped: {what}")
        return
    fix = f"{LIMIT_FIXES[encoder.limited_by]}, or set truncate_field in the task template to cut them"
    if some_are_left and max_dropped_share is not None:
        fix += f", or drop them: model.data.max_dropped_share={math.ceil(10_000 * share) / 10_000} or more"
    raise UserError(Problem("model.data", what, fix))
