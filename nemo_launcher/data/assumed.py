# SPDX-License-Identifier: Apache-2.0
"""Templates that are assumed for records of a known form (record_forms), if model.task_templates has none for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.data.chat import COMPLETION
from nemo_launcher.data.given_records import GivenRecords, Source
from nemo_launcher.data.record_forms import COMPLETED, TEMPLATES, form_of
from nemo_launcher.data.records import read_records
from nemo_launcher.data.tasks import FIRST_RECORDS, Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError


@dataclass(frozen=True, slots=True)
class Assumed:
    """The forms of records without a template."""

    forms: tuple[str, ...]
    """Keys of record_forms.TEMPLATES."""
    others_fit: bool
    """Whether some of the records have a template."""


def assumed(
    templates: Sequence[TaskTemplate],
    sources: Iterable[Source],
    columns: Mapping[str, str] | None,
    *,
    for_train: bool,
) -> Assumed | None:
    """Return what to assume for the first records of data files, or in memory; None if nothing can or need be.

    A template fits records of its taskname. The only template fits records without one that have any of its fields.
    Records of a task without a template are assumed to need none only if no template fits any record: among others,
    their taskname is a mistake. columns: as in `read_records`. Files that cannot be read are left out.
    """
    tasks, unknown, others_fit = Tasks.of(templates), [], False
    for record in _first_records(sources, columns):
        template = tasks.find(record, "")
        if isinstance(template, TaskTemplate) and (_names_task(record) or _reads(template, record)):
            others_fit = True
        else:
            unknown.append(record)
    forms = [_form(record, for_train=for_train) for record in unknown if not (others_fit and _names_task(record))]
    if not forms or None in forms:
        return None
    return Assumed(tuple(form for form in TEMPLATES if form in forms), others_fit)


def with_assumed(values: Mapping[str, Any], model: Ia3Model) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Return a training's configuration with the templates that its records need, and their forms; None if it has them.

    values: the configuration; model: its section `model`. If its templates fit no record, only those of existing_tasks
    stay.
    """
    entries = values["model"]["task_templates"]
    try:
        templates = [TaskTemplate.from_config(entry) for entry in entries]
    except UserError:  # the checks of templates report it
        return None
    data = model.data
    found = assumed(templates, [*data.train_ds, *data.validation_ds], data.fields, for_train=True)
    if found is None:
        return None
    kept = [entry for entry in entries if found.others_fit or entry["taskname"] in (model.existing_tasks or ())]
    tasks = [*model.new_tasks, *found.forms] if found.others_fit else list(found.forms)
    changed = {
        "model.task_templates": [*kept, *(dict(TEMPLATES[form]) for form in found.forms)],
        "model.new_tasks": tasks,
    }
    return with_values(values, changed), found.forms


def _first_records(sources: Iterable[Source], columns: Mapping[str, str] | None) -> Iterator[Mapping[str, object]]:
    for source in sources:
        with contextlib.suppress(UserError, OSError):  # reported when the file is checked
            found = source if isinstance(source, GivenRecords) else read_records(source, columns)
            for _, record in islice(found, FIRST_RECORDS):
                yield record


def _names_task(record: Mapping[str, object]) -> bool:
    return record.get("taskname") is not None


def _reads(template: TaskTemplate, record: Mapping[str, object]) -> bool:
    return template.is_chat or any(name in record for name in template.fields())


def _form(record: Mapping[str, object], *, for_train: bool) -> str | None:
    form = form_of(record)
    return None if for_train and form == COMPLETED and COMPLETION not in record else form
