"""Data files: there, or prepared at launch, and their first lines fit the template."""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.core.checks.templates import template_fields
from nemo_launcher.core.stages import Evaluation, Learning, Preparation, Stage
from nemo_launcher.core.surroundings import Surroundings
from nemo_launcher.errors import Problem

FIRST_LINES = 20


def check_data(stage: Stage, earlier: list[Stage], seen: Surroundings) -> list[Problem]:
    """Data files are there and readable, or will be prepared."""
    made = {output.absolute() for other in earlier for output in other.outputs()}
    preparation = stage.preparation()
    problems = []
    if isinstance(stage, Learning) and not stage.config["model"]["task_templates"]:
        return []
    for key, path in stage.data_files():
        if path.absolute() in made:
            continue
        if path.is_file():
            found = [Problem(key, f"{p.where}: {p.what}", p.fix) for p in _check_lines(stage, path)]
            problems += found if found and not _is_replaced(preparation, seen) else []
        elif preparation is None:
            fix = "correct the path, or name it squad_*.jsonl and set run.task_name=squad to have SQuAD prepared"
            problems.append(Problem(key, f"data file {path.absolute()} does not exist", fix))
    return problems


def _is_replaced(preparation: Preparation | None, seen: Surroundings) -> bool:
    """Whether the data files are prepared afresh at launch, so that what is in them now does not matter."""
    return preparation is not None and not seen.is_prepared(preparation)


def _check_lines(stage: Stage, path: Path) -> list[Problem]:
    """The first lines are records; those of a training file have the fields that its templates share."""
    from nemo_launcher.data.jsonl import check_fields

    if isinstance(stage, Evaluation):
        return check_fields(path, [], None, limit=FIRST_LINES)
    templates = stage.config["model"]["task_templates"]
    shared = [name for name in template_fields(templates[0]) if all(name in template_fields(t) for t in templates)]
    answer = templates[0].get("answer_field")
    return check_fields(path, shared, answer if answer in shared else None, limit=FIRST_LINES)
