"""What is learnt: the adapter's block, prompt style and templates."""

from __future__ import annotations

import re
import string
from typing import Any

from nemo_launcher.core.stages import Learning
from nemo_launcher.errors import Problem, did_you_mean


def check_learnt(stage: Learning) -> list[Problem]:
    """Adapter size, prompt style and templates."""
    model = stage.config["model"]
    if not model["task_templates"]:
        return [
            Problem(stage.key("model.task_templates"), "is empty", "add a template with taskname and prompt_template")
        ]
    problems = []
    tensor = model["tensor_model_parallel_size"]
    adapter = model.get("adapter_tuning")
    if adapter is not None and adapter["adapter_dim"] % tensor:
        key = stage.key("model.adapter_tuning.adapter_dim")
        what = f"{adapter['adapter_dim']} does not divide over tensor_model_parallel_size {tensor}"
        problems.append(Problem(key, what, f"{key}={-(-adapter['adapter_dim'] // tensor) * tensor}"))
    if adapter is not None and adapter["adapter_dropout"] >= 1:
        key = stage.key("model.adapter_tuning.adapter_dropout")
        problems.append(Problem(key, "must be less than 1", f"{key}=0.1"))
    if model["virtual_prompt_style"] != "no-prompts":
        key = stage.key("model.virtual_prompt_style")
        what = f"{model['virtual_prompt_style']!r}: {stage.name} has no virtual prompts"
        problems.append(Problem(key, what, f"{key}=no-prompts"))
    if model["gradient_as_bucket_view"]:
        key = stage.key("model.gradient_as_bucket_view")
        what = "there are no buckets: the few adapter gradients are summed in one piece"
        problems.append(Problem(key, what, f"{key}=False"))
    for i, template in enumerate(model["task_templates"]):
        problems += _check_template(template, stage.key(f"model.task_templates.{i}"))
    named = [template["taskname"] for template in model["task_templates"]]
    for task in [*model["new_tasks"], *(model["existing_tasks"] or [])]:
        if task not in named:
            problems.append(
                Problem(stage.key("model.new_tasks"), f"no template for {task!r}", did_you_mean(task, named))
            )
    return problems


def _check_template(template: dict[str, Any], where: str) -> list[Problem]:
    problems = []
    if template.get("total_virtual_tokens", 0) != 0:
        what = "must be 0: there are no virtual prompts"
        problems.append(Problem(f"{where}.total_virtual_tokens", what, f"{where}.total_virtual_tokens=0"))
    fields, answer = template_fields(template), template.get("answer_field")
    for key in ("answer_field", "truncate_field"):
        name = template.get(key)
        if name is not None and name not in fields:
            what = f"{name!r} is not a field of {template['prompt_template']!r}"
            problems.append(Problem(f"{where}.{key}", what, did_you_mean(name, fields)))
    if template.get("answer_only_loss", True):
        if answer is None:
            fix = f"name the field with the answer, or {where}.answer_only_loss=False"
            problems.append(Problem(f"{where}.answer_field", "answer_only_loss needs it", fix))
        elif answer in fields and not template["prompt_template"].endswith("{" + answer + "}"):
            what = f"must end with {{{answer}}}: with answer_only_loss only the end is learnt"
            problems.append(Problem(f"{where}.prompt_template", what, f"move {{{answer}}} to the end"))
    return problems


def template_fields(template: dict[str, Any]) -> list[str]:
    """The names in braces in a prompt template."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template["prompt_template"]) if name]
    except ValueError:
        return re.findall(r"\{(\w+)\}", template["prompt_template"])
