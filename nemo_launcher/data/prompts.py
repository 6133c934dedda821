"""Prompt data: the samples of whole files, and what is done with those that are too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_launcher.data.jsonl import MAX_PROBLEMS, read_records, record_problems
from nemo_launcher.data.prompt_encoder import PromptEncoder, Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import Problem, UserError, did_you_mean

__all__ = ["Lengths", "Sample", "encode_files", "encode_prompt", "load_samples", "report_lengths", "stream_samples"]


class SampleEncoder(Protocol):
    """What a family turns records into samples with. A sample has `input_ids`, `source` and `num_trained_tokens`."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_seq_length(self) -> int: ...
    @property
    def for_train(self) -> bool: ...
    @property
    def nemo_compat(self) -> bool: ...

    def problems(self, templates: Sequence[TaskTemplate] = ()) -> list[Problem]:
        """Return what makes every record fail, before the first one is read."""

    def encode(self, record: dict[str, Any], template: TaskTemplate, source: str = "") -> Any:
        """Return the sample of a record."""

    def encode_text(self, text: str, source: str) -> Any:
        """Return the sample of a prompt without a template, for inference."""

    def sample_problems(self, sample: Any) -> list[Problem]:
        """Return what makes one sample unusable."""

    def remarks(self, samples: Sequence[Any]) -> list[str]:
        """Return what the user should know about these samples."""


def encode_prompt(
    record: dict[str, Any],
    template: TaskTemplate,
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool,
) -> Sample | None:
    """Return the sample of one record, or None when it is too long and cannot be cut to fit."""
    encoder = PromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    sample = encoder.encode(record, template)
    return sample if len(sample.input_ids) <= max_seq_length else None


def load_samples(
    paths: Sequence[str | Path],
    templates: Sequence[TaskTemplate],
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool = False,
    max_dropped_share: float = 0.0,
    tokens_to_generate: int = 0,
    report: Callable[[str], None] = print,
) -> list[Sample]:
    """Return the samples of JSON Lines files, in order.

    max_seq_length: tokens that the model takes, of which tokens_to_generate are kept free; max_dropped_share: share of
    records, 0 to 1, that may be dropped because they are too long. Raises UserError for records that the templates
    cannot be filled from, for records without a token to train, and for too many dropped ones.
    """
    encoder = PromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length - tokens_to_generate,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    return encode_files(paths, templates, encoder, max_dropped_share=max_dropped_share, report=report)


def encode_files(
    paths: Sequence[str | Path],
    templates: Sequence[TaskTemplate],
    encoder: SampleEncoder,
    *,
    max_dropped_share: float | None = 0.0,
    default_taskname: str | None = None,
    any_taskname: bool = False,
    withhold_answers: bool = False,
    report: Callable[[str], None] = print,
) -> list[Any]:
    """Return the samples that a family's prompt encoder makes of JSON Lines files; otherwise as `load_samples`.

    max_dropped_share: None where each record must give a sample. default_taskname: of records without one;
    any_taskname: of records with another one too. withhold_answers: keep answer fields from the encoder, which would
    fill them in under nemo_compat.
    """
    options: dict[str, Any] = {"default_taskname": default_taskname, "any_taskname": any_taskname}
    samples = list(stream_samples(paths, templates, encoder, **options, withhold_answers=withhold_answers))
    for remark in encoder.remarks(samples):
        report(remark)
    kept = [sample for sample in samples if len(sample.input_ids) <= encoder.max_seq_length]
    if len(kept) < len(samples):
        longest = max(samples, key=lambda sample: len(sample.input_ids))
        lengths = Lengths(len(samples), len(samples) - len(kept), len(longest.input_ids), longest.source)
        report_lengths(lengths, encoder.max_seq_length, max_dropped_share, report)
    return kept


def stream_samples(
    paths: Sequence[str | Path],
    templates: Sequence[TaskTemplate],
    encoder: SampleEncoder,
    *,
    default_taskname: str | None = None,
    any_taskname: bool = False,
    withhold_answers: bool = False,
) -> Iterator[Any]:
    """Yield a sample for each record, too long ones included; the arguments are those of `encode_files`.

    Raises UserError before the first one for mistakes that concern all records, and behind the last one with the
    problems of all files.
    """
    problems = [*_repeated_tasknames(templates), *encoder.problems(templates)]
    if problems:
        raise UserError(problems)
    by_name = _Templates(
        {template.taskname: template for template in templates}, default_taskname, any_taskname, withhold_answers
    )
    for path in paths:
        found: list[Problem] = []
        try:
            for number, record in read_records(path):
                sample = _sample(record, f"{path}:{number}", by_name, encoder, found)
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
    """How long samples are: their number, how many are too long, and the tokens and the source of the longest."""

    num_samples: int
    num_dropped: int
    longest: int
    longest_source: str


def _repeated_tasknames(templates: Sequence[TaskTemplate]) -> list[Problem]:
    names = [template.taskname for template in templates]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [Problem("model.task_templates", f"two templates for {name!r}", "keep one of them") for name in repeated]


@dataclass(frozen=True, slots=True)
class _Templates:
    """The templates by taskname.

    default: of records without one, and with any_name of all records. withhold_answers: see `encode_files`.
    """

    by_name: dict[str, TaskTemplate]
    default: str | None = None
    any_name: bool = False
    withhold_answers: bool = False

    def find(self, taskname: object) -> TaskTemplate | None:
        if self.default is not None and (taskname is None or self.any_name):
            taskname = self.default
        return self.by_name.get(taskname) if isinstance(taskname, str) else None


def _sample(
    record: dict[str, Any], where: str, templates: _Templates, encoder: SampleEncoder, problems: list[Problem]
) -> Any:
    """Return the sample of `record`, or None, and add to `problems` why there is none."""
    taskname = record.get("taskname")
    template = templates.find(taskname)
    if template is None:
        what = "no 'taskname'" if taskname is None else f"no task template for taskname {taskname!r}"
        problems.append(Problem(where, what, did_you_mean(str(taskname), templates.by_name)))
        return None
    if templates.withhold_answers:
        record = {name: value for name, value in record.items() if name != template.answer_field}
    found = _record_problems(record, where, template, encoder)
    if not found:
        sample = encoder.encode(record, template, where)
        found = encoder.sample_problems(sample) or _emptiness(sample, where, encoder)
    problems += found
    return None if found else sample


def _emptiness(sample: Any, where: str, encoder: SampleEncoder) -> list[Problem]:
    if encoder.for_train and sample.num_trained_tokens == 0:
        return [Problem(where, "no token is left to train on", "fill the answer, or remove the line")]
    if not sample.input_ids:
        return [Problem(where, "the prompt has no tokens", "fill the fields, or remove the line")]
    return []


def _record_problems(
    record: dict[str, Any], where: str, template: TaskTemplate, encoder: SampleEncoder
) -> list[Problem]:
    answer_field = template.answer_field if encoder.for_train else None
    fields = template.fields() if encoder.for_train else template.prompt_fields()
    if encoder.nemo_compat:  # NeMo leaves nothing where a field is absent, the answer in training apart
        fields = [field for field in template.fields() if field in record or field == answer_field]
    return list(record_problems(record, where, fields, answer_field))


def report_lengths(
    lengths: Lengths, limit: int, max_dropped_share: float | None, report: Callable[[str], None]
) -> None:
    """Say how many samples are too long, if any are; raises UserError when they are more than allowed, or all."""
    if not lengths.num_dropped:
        return
    what = (
        f"{lengths.num_dropped:,} of {lengths.num_samples:,} prompts are longer than {limit:,} tokens; "
        f"the longest, {lengths.longest_source}, has {lengths.longest:,}"
    )
    some_are_left, share = lengths.num_dropped < lengths.num_samples, lengths.num_dropped / lengths.num_samples
    if some_are_left and share <= (max_dropped_share or 0.0):
        report(f"Dropped: {what}")
        return
    fix = "raise encoder_seq_length, or name a truncate_field in the task template to cut them"
    if some_are_left and max_dropped_share is not None:
        fix += f", or drop them: model.data.max_dropped_share={math.ceil(10_000 * share) / 10_000} or more"
    raise UserError(Problem("model.data", what, fix))
