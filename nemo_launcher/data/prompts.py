"""Prompt data: the samples of whole files, and what is done with those that are too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_launcher.data.jsonl import MAX_PROBLEMS, read_records, record_problems
from nemo_launcher.data.prompt_encoder import PromptEncoder, Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import Problem, UserError, did_you_mean

__all__ = ["Sample", "encode_files", "encode_prompt", "load_samples"]


class SampleEncoder(Protocol):
    """What a family turns records into samples with. A sample has `input_ids`, `source` and `num_trained_tokens`."""

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
    report: Callable[[str], None] = print,
) -> list[Any]:
    """Return the samples that a family's prompt encoder makes of JSON Lines files; otherwise as `load_samples`.

    max_dropped_share: None where each record must give a sample. default_taskname: of records without one;
    any_taskname: of records with another one too.
    """
    problems = [*_repeated_tasknames(templates), *encoder.problems(templates)]
    if problems:
        raise UserError(problems)
    by_name = _Templates({template.taskname: template for template in templates}, default_taskname, any_taskname)
    samples = _encode_files(paths, by_name, encoder)
    for remark in encoder.remarks(samples):
        report(remark)
    kept = [sample for sample in samples if len(sample.input_ids) <= encoder.max_seq_length]
    if len(kept) < len(samples):
        _report_dropped(samples, kept, encoder.max_seq_length, max_dropped_share, report)
    return kept


def _repeated_tasknames(templates: Sequence[TaskTemplate]) -> list[Problem]:
    names = [template.taskname for template in templates]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [Problem("model.task_templates", f"two templates for {name!r}", "keep one of them") for name in repeated]


@dataclass(frozen=True, slots=True)
class _Templates:
    """The templates by taskname. default: of records without one, and with any_name of all records."""

    by_name: dict[str, TaskTemplate]
    default: str | None = None
    any_name: bool = False

    def find(self, taskname: object) -> TaskTemplate | None:
        if self.default is not None and (taskname is None or self.any_name):
            taskname = self.default
        return self.by_name.get(taskname) if isinstance(taskname, str) else None


def _encode_files(paths: Sequence[str | Path], templates: _Templates, encoder: SampleEncoder) -> list[Any]:
    """Return a sample for each record, too long ones included; raises UserError with the problems of all files."""
    samples: list[Any] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            for number, record in read_records(path):
                found = _add_sample(samples, record, f"{path}:{number}", templates, encoder)
                problems += found
                if len(problems) >= MAX_PROBLEMS:
                    break
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return samples


def _add_sample(
    samples: list[Any],
    record: dict[str, Any],
    where: str,
    templates: _Templates,
    encoder: SampleEncoder,
) -> list[Problem]:
    """Append the sample of `record` to `samples`, or return why there is none."""
    taskname = record.get("taskname")
    template = templates.find(taskname)
    if template is None:
        what = "no 'taskname'" if taskname is None else f"no task template for taskname {taskname!r}"
        return [Problem(where, what, did_you_mean(str(taskname), templates.by_name))]
    problems = _record_problems(record, where, template, encoder)
    if problems:
        return problems
    sample = encoder.encode(record, template, where)
    problems = encoder.sample_problems(sample)
    if problems:
        return problems
    if encoder.for_train and sample.num_trained_tokens == 0:
        return [Problem(where, "no token is left to train on", "fill the answer, or remove the line")]
    if not sample.input_ids:
        return [Problem(where, "the prompt has no tokens", "fill the fields, or remove the line")]
    samples.append(sample)
    return []


def _record_problems(
    record: dict[str, Any], where: str, template: TaskTemplate, encoder: SampleEncoder
) -> list[Problem]:
    answer_field = template.answer_field if encoder.for_train else None
    fields = template.fields() if encoder.for_train else template.prompt_fields()
    if encoder.nemo_compat:  # NeMo leaves nothing where a field is absent, the answer in training apart
        fields = [field for field in template.fields() if field in record or field == answer_field]
    return list(record_problems(record, where, fields, answer_field))


def _report_dropped(
    samples: list[Any], kept: list[Any], limit: int, max_dropped_share: float | None, report: Callable[[str], None]
) -> None:
    """Say how many samples are too long; raises UserError when they are more than allowed, or all."""
    num_dropped = len(samples) - len(kept)
    longest = max(samples, key=lambda sample: len(sample.input_ids))
    what = (
        f"{num_dropped:,} of {len(samples):,} prompts are longer than {limit:,} tokens; "
        f"the longest, {longest.source}, has {len(longest.input_ids):,}"
    )
    if kept and num_dropped / len(samples) <= (max_dropped_share or 0.0):
        report(f"Dropped: {what}")
        return
    fix = "raise encoder_seq_length, or name a truncate_field in the task template to cut them"
    if kept and max_dropped_share is not None:
        share = math.ceil(10_000 * num_dropped / len(samples)) / 10_000
        fix += f", or drop them: model.data.max_dropped_share={share} or more"
    raise UserError(Problem("model.data", what, fix))
