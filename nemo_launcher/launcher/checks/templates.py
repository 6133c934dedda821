# SPDX-License-Identifier: Apache-2.0
"""Check what a training learns: the adapter settings, prompt style and templates."""

from __future__ import annotations

from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.layers import stack_problems
from nemo_launcher.config.overrides import override
from nemo_launcher.config.sections import learning as sections
from nemo_launcher.data.record_forms import no_templates
from nemo_launcher.data.templates import TaskTemplate, repeated_tasknames
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.launcher.stages import Learning


def check_learnt(stage: Learning) -> list[Problem]:
    """Check adapter settings, prompt style and templates."""
    model = stage.section.model
    settings, block = settings_of(stage.config["model"]), method_of(stage.config["model"]).block
    is_empty = not model.task_templates and stage.knows_records()
    problems = [no_templates(stage.key("model.task_templates"))] if is_empty else []
    for wrong in settings.wrong(model.tensor_model_parallel_size):
        key = stage.key(f"model.{block}.{wrong.key}")
        problems.append(Problem(key, wrong.what, override(key, wrong.value)))
    if stage.family in FAMILIES and FAMILIES[stage.family].engine != "t5":
        problems += stack_problems(settings.layers, 1, stage.key(f"model.{block}.layers"))
    for i, template in enumerate(model.task_templates):
        problems += _check_template(template, stage.key(f"model.task_templates.{i}"))
    if not model.task_templates:
        return problems
    if not model.new_tasks and not model.existing_tasks:
        first = model.task_templates[0].taskname
        key = stage.key("model.new_tasks")
        problems.append(Problem(key, "must not be empty: it names the templates to train on", override(key, [first])))
    named = [template.taskname for template in model.task_templates]
    problems += repeated_tasknames(named, stage.key("model.task_templates"))
    tasks = [*model.new_tasks, *(model.existing_tasks or [])]
    once = "name it once, in new_tasks or in existing_tasks"
    repeated = [task for task in dict.fromkeys(tasks) if tasks.count(task) > 1]
    problems += [Problem(stage.key("model.new_tasks"), f"{task!r} is named twice", once) for task in repeated]
    for task in dict.fromkeys(tasks):
        if task not in named:
            problems.append(
                Problem(stage.key("model.new_tasks"), f"no template for {task!r}", did_you_mean(task, named))
            )
    return problems


def _check_template(template: sections.TaskTemplate, where: str) -> list[Problem]:
    """Return the template's problems, with the function that the job uses too."""
    try:
        TaskTemplate.from_config(vars(template), where)
    except UserError as error:
        return error.problems
    return []


def check_line_breaks(stage: Learning, overrides: list[str]) -> list[Problem]:
    """Check that templates on the command line do not have `\\n` for a line break; shells do not convert it."""
    section = stage.key("model.task_templates")
    if not any(text.lstrip("+").startswith(section) for text in overrides):
        return []
    fix = "type a real line break inside the quotes, or in bash: $'KEY=\"first\\nsecond\"'"
    return [
        Problem(f"{section}.{i}.prompt_template", "has a backslash and an n instead of a line break", fix)
        for i, template in enumerate(stage.section.model.task_templates)
        if "\\n" in template.prompt_template
    ]
