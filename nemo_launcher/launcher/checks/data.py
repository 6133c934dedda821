# SPDX-License-Identifier: Apache-2.0
"""Check data files: they exist or are prepared at launch, and their first lines match the template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.config.datasets import dataset_of_file
from nemo_launcher.data.records import columns_in, path_problem
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.values import Section
from nemo_launcher.launcher.hub_data import HubFile
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Preparation, Stage
from nemo_launcher.launcher.stages import Evaluation, Learning
from nemo_launcher.runtime.progress_file import load_summary


def check_data(stage: Stage, earlier: list[Stage], probe: LaunchProbe) -> list[Problem]:
    """Check that data files exist and are readable, or will be prepared."""
    made = {output.absolute() for other in earlier for output in other.outputs()}
    to_fetch = {one.path for one in stage.from_hub if isinstance(one, HubFile) and not one.is_fetched()}
    preparation = stage.preparation()
    problems = []
    files = [*stage.data_files(), *stage.test_files()]
    templates, columns = _prompts(stage, earlier, probe) if files else ([], None)
    for key, path in files:
        if path.absolute() in made or path in to_fetch:
            continue
        if path_problem(path) is None:
            lines = _check_lines(stage, key, path, templates, columns)
            found = [Problem(key, f"{p.where}: {p.what}", p.fix) for p in lines]
            problems += found if found and not _is_replaced(preparation, probe) else []
        elif path.exists() and not path.is_dir():
            problems.append(Problem(key, f"{path.absolute()} is a device or pipe", "name a regular file"))
        elif path.is_dir():
            problems.append(_folder_problem(key, path.absolute()))
        elif preparation is None:
            problems.append(
                Problem(key, f"data file {path.absolute()} does not exist", _fix_of_absent(stage, key, path))
            )
    return problems


def check_summary(stage: Stage, earlier: list[Stage]) -> list[Problem]:
    """Check the training summary that an evaluation reads, unless an earlier stage writes it."""
    named = stage.section.training_summary_path if isinstance(stage, Evaluation) else None
    written = {output.path.absolute() for other in earlier for output in other.writes()}
    if not named or not Path(named).is_file() or written.intersection([Path(named), *Path(named).parents]):
        return []
    key = stage.key("training_summary_path")
    try:
        load_summary(Path(named), key)
    except UserError as error:
        return [Problem(key, f"{p.where}: {p.what}", p.fix) for p in error.problems]
    return []


def _fix_of_absent(stage: Stage, key: str, path: Path) -> str:
    task = stage.key("run.task_name")
    matching = sorted(path.parent.glob(path.name))[:3] if set("*?[").intersection(path.name) else []
    if matching:
        return f"wildcards are not expanded; name each file: {', '.join(map(str, matching))}"
    fix, dataset = "correct the path", dataset_of_file(path.name)
    if dataset is not None and stage.task_name != dataset.name:
        fix += f", or let the launcher prepare {dataset.title}: {task}={dataset.name}"
    if key == stage.key("ground_truth_file_path"):
        fix += f"; or use the answers in the question records: {key}=null"
    return fix


def _folder_problem(key: str, folder: Path) -> Problem:
    problem = path_problem(folder)
    assert problem is not None
    found = sorted(folder.glob("*.jsonl"))[:3] + sorted(folder.glob("*.csv"))[:3] + sorted(folder.glob("*.parquet"))[:3]
    fix = f"name a file in it: {', '.join(map(str, found))}" if found else problem.fix
    return Problem(key, f"{problem.where} {problem.what}", fix)


def _is_replaced(preparation: Preparation | None, probe: LaunchProbe) -> bool:
    """Return whether the data files are prepared again at launch, so that their present content does not matter."""
    return preparation is not None and not probe.is_prepared(preparation)


def _check_lines(
    stage: Stage, key: str, path: Path, templates: list[Section], columns: Mapping[str, str] | None
) -> list[Problem]:
    """Check that the first lines are records of tasks with templates and have the templates' fields."""
    from nemo_launcher.data.labels import check_answers
    from nemo_launcher.data.record_checks import check_fields
    from nemo_launcher.data.tasks import FIRST_RECORDS, check_tasks

    try:
        parsed = [TaskTemplate.from_config(template) for template in templates]
    except UserError:  # check_learnt reports the templates
        parsed = []
    if key == stage.key("ground_truth_file_path"):
        return check_answers(path, parsed, limit=FIRST_RECORDS)
    if not parsed:
        return check_fields(path, [], None, limit=FIRST_RECORDS)
    nemo_compat = stage.parallel is not None and stage.parallel.nemo_compat
    for_train = isinstance(stage, Learning) and key != stage.key("model.data.test_ds")
    return check_tasks(path, parsed, for_train=for_train, nemo_compat=nemo_compat, columns=columns)


def _prompts(stage: Stage, earlier: list[Stage], probe: LaunchProbe) -> tuple[list[Section], Mapping[str, str] | None]:
    """Return a training's templates and columns, or for an evaluation those of its adapter; empty if unknown."""
    if isinstance(stage, Learning):
        return [vars(template) for template in stage.section.model.task_templates], stage.section.model.data.fields
    if not isinstance(stage, Evaluation):
        return [], None
    templates, columns = _prompts_of_adapter(stage, earlier, probe)
    return templates, columns if stage.section.fields is None else stage.section.fields


def _prompts_of_adapter(
    stage: Evaluation, earlier: list[Stage], probe: LaunchProbe
) -> tuple[list[Section], Mapping[str, str] | None]:
    path = Path(stage.section.adapter_model_file)
    trainer = next((other for other in earlier if isinstance(other, Learning) and path in other.outputs()), None)
    if trainer is not None:  # whose templates may depend on records that are still to be fetched
        prompts, columns = _prompts(trainer, earlier, probe)
        return prompts if trainer.knows_records() else [], columns
    adapter = probe.known_outline(path)
    found = adapter.config.get("task_templates") if adapter is not None else None
    entries = found if isinstance(found, list) else []
    templates: list[Section] = [entry for entry in entries if isinstance(entry, dict)]
    valid = [template for template in templates if isinstance(template.get("prompt_template"), str)]
    data = adapter.config.get("data") if adapter is not None else None
    return valid, columns_in(data) if isinstance(data, Mapping) else None
