# SPDX-License-Identifier: Apache-2.0
"""Checks of the metrics that checkpoints and early stopping follow, for launcher and job; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nemo_launcher.config.monitored import LOGGED, metric_of, monitors
from nemo_launcher.config.overrides import override
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.learning import Ia3Model, TaskTemplate
from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.evaluation.metrics.own_code import is_own
from nemo_launcher.evaluation.metrics.registry import name_problems, registered, split_model_problems


def monitor_problems(config: Learning, key: Callable[[str], str] = str) -> list[Problem]:
    """Return what is wrong with the metrics of a training's validations.

    config: a learning stage's section. key: converts a dotted key within the stage into the full key for messages.
    """
    problems: list[Problem] = []
    followed = False
    for section, (monitor, mode) in monitors(config.exp_manager).items():
        name, where = metric_of(monitor), key(f"{section}.monitor")
        if name is None:
            continue
        if name not in registered() and not is_own(name):
            what = f"{monitor!r} is neither logged nor a metric"
            problems.append(Problem(where, what, did_you_mean(monitor, (*LOGGED, *registered()))))
            continue
        problems += name_problems([name], where) + _mode_problems(name, mode, key(f"{section}.mode"))
        problems += _model_problems(name, config.model, where, key)
        followed = True
    return problems + (list(_impossible(config, key)) if followed else [])


def _mode_problems(name: str, mode: str, where: str) -> list[Problem]:
    metric = registered().get(name)
    wanted = "max" if metric is None or metric.higher_is_better else "min"
    worst = "lowest" if wanted == "max" else "highest"
    what = f"is {mode}, which takes the {worst} {name} for the best"
    return [] if mode == wanted else [Problem(where, what, f"{where}={wanted}")]


def _model_problems(name: str, model: Ia3Model, where: str, key: Callable[[str], str]) -> list[Problem]:
    """Return why a metric cannot be computed with these templates and parallel sizes."""
    metric = registered().get(name)
    needs = "text" if metric is None else metric.needs
    num_ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    problems = split_model_problems([name], num_ranks, where)
    if needs == "choices" and model.pipeline_model_parallel_size > 1:
        fix = f"{key('model.pipeline_model_parallel_size')}=1, or another metric"
        problems.append(Problem(where, f"{name} is computed by a model in one pipeline stage", fix))
    for place, template in enumerate(model.task_templates):
        problems += _template_problems(name, needs, template, key(f"model.task_templates.{place}"))
    return problems


def _template_problems(name: str, needs: str, template: TaskTemplate, where: str) -> Iterator[Problem]:
    if template.template_format != "chat" and not template.answer_field:
        what = f"{name} needs the right answers of {template.taskname!r}"
        yield Problem(
            f"{where}.answer_field", what, "name the field that holds the answer, such as answer_field: answer"
        )
    if needs == "choices" and template.choices_field is None and not template.choices:
        what = f"{name} needs the answer choices of {template.taskname!r}"
        fix = 'set choices: ["yes", "no"], or choices_field: the field that lists them in each record'
        yield Problem(f"{where}.choices", what, fix)


def _impossible(config: Learning, key: Callable[[str], str]) -> Iterator[Problem]:
    """Yield the settings with which no metric can be computed in a validation."""
    obstacles = (
        ("model.nemo_compat", config.model.nemo_compat, "NeMo trains adapters by val_loss alone", False),
        ("model.sequence_parallel", config.model.splits_tokens, "answers are generated token by token", False),
        ("trainer.limit_val_batches", config.trainer.limit_val_batches == 0, "nothing is validated", 1.0),
    )
    for name, is_obstacle, reason, instead in obstacles:
        if is_obstacle:
            what = f"checkpoints and early stopping cannot follow a metric: {reason}"
            yield Problem(key(name), what, f"{override(key(name), instead)}, or monitor=val_loss")
