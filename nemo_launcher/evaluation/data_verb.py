# SPDX-License-Identifier: Apache-2.0
"""The console verb `data`: what data files contain, and what training makes of them. Imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from nemo_launcher.config.loggers import import_error
from nemo_launcher.config.near_duplicates import INSTALL, LIBRARY
from nemo_launcher.config.sections.learning import LEAST_SIMILARITY
from nemo_launcher.data.chat import answer_of
from nemo_launcher.data.labels import answers_in
from nemo_launcher.data.record_checks import field_advice
from nemo_launcher.data.record_forms import told
from nemo_launcher.data.record_values import has_value, prepared
from nemo_launcher.data.records import read_records
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.verb_options import add_prompt_options, positive, text_problems
from nemo_launcher.runtime.startup import quick_imports

if TYPE_CHECKING:
    from nemo_launcher.data.overview import Reader
    from nemo_launcher.data.templates import TaskTemplate
    from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts

_TOKENS_TO_GENERATE = 30  # as in `generate`
_AS_PROMPTS = ", so the file's records are taken as prompts"

_TEXT = "describe data files: lengths, duplicates, labels, and three samples as the model sees them"


def _add_data(verb: argparse.ArgumentParser) -> None:
    files = "data files; what a later one has in common with an earlier one is reported"
    verb.add_argument("files", nargs="+", metavar="FILE", help=files)
    verb.add_argument("--base", metavar="FILE.nemo", help="the base model, whose tokenizer counts the tokens")
    verb.add_argument("--adapter", metavar="FILE.nemo", help="take templates and settings from this adapter")
    add_prompt_options(verb)
    fields = "the columns of fields that the files name otherwise, also below a column, as in answer=answers.text"
    verb.add_argument("--fields", nargs="+", action="extend", default=[], metavar="FIELD=COLUMN", help=fields)
    batch = "samples per optimizer step, which share prefixes (default 64)"
    verb.add_argument("--global-batch-size", type=positive, default=64, metavar="N", help=batch)
    near = "also find samples that share at least this part of their runs of tokens, such as 0.9 (needs --base)"
    verb.add_argument("--near-duplicates", type=float, metavar="SHARE", help=near)
    verb.add_argument("--json", action="store_true", help="print all facts as JSON, one line for each file")
    verb.set_defaults(run=_data)


def _data(options: argparse.Namespace) -> int:
    from nemo_launcher.data.overview import overviews, readable

    problems = text_problems(options) + _field_problems(options.fields) + _near_problems(options)
    if options.settings and options.base is None:
        problems.append(Problem("--set", "changes how samples are encoded, which needs a tokenizer", "give --base too"))
    if problems:
        raise UserError(problems)
    reader = _with_tokenizer(options) if options.base is not None else _without_tokenizer(options)
    for number, overview in enumerate(overviews(options.files, reader)):
        if options.json:
            print(json.dumps(asdict(overview), ensure_ascii=False))
        else:
            print("\n".join([*([""] if number else []), *readable(overview)]))
        remark = _unanswered(overview.file, reader.tasks, reader.columns or {}) if reader.tasks.by_name else None
        if remark is not None:
            print(remark, file=sys.stderr)
    return 0


def _without_tokenizer(options: argparse.Namespace) -> Reader:
    from nemo_launcher.data.assumed import assumed
    from nemo_launcher.data.overview import Reader
    from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts

    prompts = _with_columns(AdapterPrompts.read(_adapter_config(options)), options)
    is_told = options.template is not None or options.adapter is not None
    if not is_told and (options.answer_field or assumed([], options.files, prompts.columns, for_train=False) is None):
        return Reader(Tasks.of([]), options.answer_field, prompts.columns)
    return Reader(_tasks(options, prompts, _templates(options, prompts)), columns=prompts.columns)


def _field_problems(fields: Sequence[str]) -> list[Problem]:
    return [
        Problem(f"--fields {field}", "is not FIELD=COLUMN", "such as --fields context=passage answer=answers.text")
        for field in fields
        if not all(field.partition("="))
    ]


def _near_problems(options: argparse.Namespace) -> list[Problem]:
    share, key = options.near_duplicates, "--near-duplicates"
    if share is None:
        return []
    problems = []
    if not LEAST_SIMILARITY <= share <= 1:
        problems.append(Problem(f"{key} {share:g}", f"is not between {LEAST_SIMILARITY:g} and 1", f"{key} 0.9"))
    if options.base is None:
        problems.append(Problem(key, "compares tokens, which needs a tokenizer", "give --base too"))
    if (what := import_error(LIBRARY)) is not None:
        problems.append(Problem(key, what, INSTALL))
    return problems


def _with_columns(prompts: AdapterPrompts, options: argparse.Namespace) -> AdapterPrompts:
    """Return prompt settings with the columns that are given, instead of the adapter's."""
    pairs = [field.partition("=") for field in options.fields]
    return replace(prompts, columns={field: column for field, _, column in pairs}) if pairs else prompts


def _templates(options: argparse.Namespace, prompts: AdapterPrompts) -> list[TaskTemplate]:
    """Return the templates, and print those that were assumed."""
    from nemo_launcher.evaluation.prompt_settings import templates_of

    templates = templates_of(prompts, options.template, options.answer_field, options.files)
    if options.template is None and not prompts.task_templates:
        print(told(template.taskname for template in templates), file=sys.stderr)
    return templates


def _tasks(options: argparse.Namespace, prompts: AdapterPrompts, templates: Sequence[TaskTemplate]) -> Tasks:
    """Return the templates as generate and score use them: a single one needs no taskname in the records."""
    default = templates[0].taskname if len(templates) == 1 else None
    return Tasks.of(templates, default, any_name=options.template is not None or prompts.names_no_task)


def _with_tokenizer(options: argparse.Namespace) -> Reader:
    with quick_imports():
        from nemo_launcher.checkpoint.archive import Archive
        from nemo_launcher.data.near_samples import NearSamples
        from nemo_launcher.data.overview import Encoding, Reader
        from nemo_launcher.data.prompts import stream_samples
        from nemo_launcher.data.token_statistics import TokenCollector
        from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
        from nemo_launcher.evaluation.prompt_settings import parse_settings, with_settings
        from nemo_launcher.families.base import describe_base

    config = with_settings(_adapter_config(options), parse_settings(options.settings))
    prompts = _with_columns(AdapterPrompts.read(config), options)
    templates = _templates(options, prompts)
    tasks = _tasks(options, prompts, templates)
    with Archive(options.base) as archive:
        base = describe_base(archive)
    make_encoder = partial(
        base.family.prompt_encoder,
        base.tokenizer,
        base.shape,
        prompts.settings,
        encoder_seq_length=prompts.encoder_seq_length,
        nemo_compat=prompts.nemo_compat,
    )

    near = None if options.near_duplicates is None else NearSamples(options.near_duplicates)

    def encoding(file: str) -> Encoding:
        is_complete = _unanswered(file, tasks, prompts.columns) is None
        encoder = make_encoder(tokens_to_generate=None if is_complete else _TOKENS_TO_GENERATE)
        size, shares = options.global_batch_size, base.family.shares_prefixes
        collector = TokenCollector(encoder, shares_prefixes=shares, global_batch_size=size)
        samples = partial(
            stream_samples, default_taskname=tasks.default, any_taskname=tasks.any_name, columns=prompts.columns
        )
        return Encoding(lambda: samples([file], templates, encoder), collector, near)

    return Reader(tasks, columns=prompts.columns, encoding=encoding)


def _unanswered(file: str, tasks: Tasks, columns: Mapping[str, str]) -> Problem | None:
    """Return a remark if the first record of a file lacks its answer, so that the file is no training data."""
    with suppress(UserError):  # reported when the file is read
        for where, record in islice(read_records(file, columns), 1):
            template = tasks.find(record, file)
            if isinstance(template, Problem):
                return None
            if template.is_chat:
                return None if answer_of(record) is not None else Problem(where, f"no answer{_AS_PROMPTS}")
            values, field = prepared(record, template, for_train=True), template.answer_field
            if field is not None and not answers_in(values, field):
                what = f"no answer in {field!r}{_AS_PROMPTS}"
                return Problem(where, what, "" if has_value(values, field) else field_advice(field, record))
    return None


def _adapter_config(options: argparse.Namespace) -> dict[str, object]:
    if options.adapter is None:
        return {}
    from nemo_launcher.adapters.archive import read_adapter

    return read_adapter(options.adapter)[0]


DATA_VERBS = {"data": (_add_data, _TEXT)}
