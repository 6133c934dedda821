"""Facts about a stage that can be known before it is queued: sizes that fit, sound templates, files that exist."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path
from typing import Any

from nemo_launcher.core.stages import FAMILIES, Conversion, Evaluation, Input, Learning, Preparation, Stage
from nemo_launcher.errors import Problem, did_you_mean

TIME_LIMIT = re.compile(r"(\d+-)?\d{1,3}(:\d{2}){0,2}")
FIRST_LINES = 20


def check_stage(stage: Stage, earlier: list[Stage], later: list[Stage]) -> list[Problem]:
    """Return what would make `stage` fail; what an `earlier` stage makes need not be there yet."""
    problems = check_run(stage) + check_family(stage)
    problems += check_parallelism(stage)
    for needed in stage.inputs():
        problems += check_input(needed, earlier, later)
    problems += check_data(stage, earlier)
    if isinstance(stage, Learning):
        problems += check_training_length(stage) + check_model(stage)
    return problems


def check_run(stage: Stage) -> list[Problem]:
    """The job's name, folder and time limit."""
    problems = []
    name, limit = stage.job_name, stage.run["time_limit"]
    if not name or "/" in name or not name.isprintable():
        problems.append(
            Problem(stage.key("run.name"), f"{name!r} cannot be a file name", "use letters, digits, _ and -")
        )
    if limit is not None and not TIME_LIMIT.fullmatch(limit):
        fix = f"write hours, minutes, seconds: \"{stage.key('run.time_limit')}='04:00:00'\""
        problems.append(Problem(stage.key("run.time_limit"), f"{limit!r} is not a time", fix))
    existing = next(path for path in [stage.folder, *stage.folder.parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = "choose another: base_results_dir=/path, or this key"
        problems.append(Problem(stage.key("run.results_dir"), f"cannot write to {existing}", fix))
    return problems


def check_family(stage: Stage) -> list[Problem]:
    """The chosen file belongs to a known model family."""
    if stage.family is None or stage.family in FAMILIES:
        return []
    fix = did_you_mean(stage.family, FAMILIES)
    return [Problem(f"{stage.name}={stage.choice}", f"no model family is called {stage.family!r}", fix)]


def check_parallelism(stage: Stage) -> list[Problem]:
    """Devices, parallel sizes and batch sizes divide each other."""
    sizes = stage.config.get("model", stage.config)
    if "tensor_model_parallel_size" not in sizes:
        return []
    prefix = "model." if "model" in stage.config else ""
    tensor, pipeline = sizes["tensor_model_parallel_size"], sizes["pipeline_model_parallel_size"]
    split = sizes.get("pipeline_model_parallel_split_rank")
    if stage.family == "t5" and pipeline > 1 and split and not 0 < split < pipeline:
        key = stage.key(f"{prefix}pipeline_model_parallel_split_rank")
        what = f"{split}: of {pipeline} pipeline stages the decoder begins at one of 1 to {pipeline - 1}"
        return [Problem(key, what, f"{key}={pipeline // 2}")]
    if sizes.get("sequence_parallel") and tensor == 1:
        key = stage.key(f"{prefix}sequence_parallel")
        what = "needs a tensor_model_parallel_size above 1, whose ranks share the tokens"
        return [Problem(key, what, f"{key}=False")]
    devices = stage.devices * stage.num_nodes
    if devices % (tensor * pipeline):
        what = (
            f"{stage.devices} devices on {stage.num_nodes} node(s) make {devices} ranks, which do not divide into "
            f"model replicas of {tensor} (tensor) x {pipeline} (pipeline)"
        )
        size_key = stage.key(f"{prefix}tensor_model_parallel_size")
        fix = f"give a multiple of {tensor * pipeline} devices, or lower {size_key}"
        return [Problem(stage.key("trainer.devices"), what, fix)]
    if "global_batch_size" not in sizes:
        return []
    replicas = devices // (tensor * pipeline)
    micro_step = sizes["micro_batch_size"] * replicas
    if sizes["global_batch_size"] % micro_step:
        nearby = max(micro_step, round(sizes["global_batch_size"] / micro_step) * micro_step)
        key = stage.key("model.global_batch_size")
        what = (
            f"{sizes['global_batch_size']} is not a multiple of micro_batch_size {sizes['micro_batch_size']} "
            f"x {replicas} data-parallel replica(s)"
        )
        return [Problem(key, what, f"{key}={nearby}")]
    return []


def check_training_length(stage: Learning) -> list[Problem]:
    """Training ends, and gradients are accumulated in one place only."""
    problems = []
    trainer = stage.trainer
    if trainer["max_epochs"] in (None, -1) and trainer["max_steps"] in (None, -1) and not trainer.get("max_time"):
        fix = f"set one: {stage.key('trainer.max_epochs')}=4"
        problems.append(Problem(stage.key("trainer.max_epochs"), "neither max_epochs nor max_steps ends training", fix))
    if trainer["accumulate_grad_batches"] != 1:
        what = "must be 1: model.micro_batch_size and model.global_batch_size set the accumulation"
        fix = f"raise {stage.key('model.global_batch_size')} instead"
        problems.append(Problem(stage.key("trainer.accumulate_grad_batches"), what, fix))
    return problems


def check_model(stage: Learning) -> list[Problem]:
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


def check_input(needed: Input, earlier: list[Stage], later: list[Stage]) -> list[Problem]:
    """A model file is there, or an earlier stage makes it."""
    path = needed.path.absolute()
    if path.exists() or any(path == output.absolute() for stage in earlier for output in stage.outputs()):
        return []
    what = f"{needed.title} {path} does not exist"
    maker = next((s for s in later if path in [output.absolute() for output in s.outputs()]), None)
    if maker is not None:
        return [Problem(needed.key, what, f"{maker.name} makes it: put it first in stages")]
    return [Problem(needed.key, what, _better_path(needed, earlier) or needed.fix)]


def _better_path(needed: Input, earlier: list[Stage]) -> str | None:
    """A file that was probably meant: made by an earlier stage, or in the other documented place."""
    if needed.title.endswith("base model"):
        made = [output for stage in earlier if isinstance(stage, Conversion) for output in stage.outputs()]
        folder = needed.path.absolute().parent
        other = folder.parent / needed.path.name if folder.name == "results" else folder / "results" / needed.path.name
        made += [other] if other.exists() else []
    elif needed.title == "trained archive":
        trained = [stage for stage in earlier if isinstance(stage, Learning)]
        if trained and trained[-1].name.partition("_")[0] not in needed.fix:
            return f"{trained[-1].name} makes another: choose evaluation={_evaluation_of(trained[-1])}"
        made = [output for stage in trained for output in stage.outputs()]
    else:
        made = []
    return f"there is or will be another one: {needed.key}={made[-1]}" if made else None


def _evaluation_of(stage: Learning) -> str:
    return f"{stage.name.partition('_')[0]}_{stage.choice}"


def check_data(stage: Stage, earlier: list[Stage]) -> list[Problem]:
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
            found = _check_lines(stage, path)
            problems += found if found and not _is_replaced(preparation) else []
        elif preparation is None:
            fix = "correct the path, or name it squad_*.jsonl and set run.task_name=squad to have SQuAD prepared"
            problems.append(Problem(key, f"data file {path.absolute()} does not exist", fix))
    return problems


def _is_replaced(preparation: Preparation | None) -> bool:
    """Whether the data files are prepared afresh at launch, so that what is in them now does not matter."""
    from nemo_launcher.data.squad import is_prepared

    return preparation is not None and not is_prepared(preparation.source_dir, preparation.output_dir)


def _check_lines(stage: Stage, path: Path) -> list[Problem]:
    """The first lines are records; those of a training file have the fields that its templates share."""
    from nemo_launcher.data.jsonl import check_fields

    if isinstance(stage, Evaluation):
        return check_fields(path, [], None, limit=FIRST_LINES)
    templates = stage.config["model"]["task_templates"]
    shared = [name for name in template_fields(templates[0]) if all(name in template_fields(t) for t in templates)]
    answer = templates[0].get("answer_field")
    return check_fields(path, shared, answer if answer in shared else None, limit=FIRST_LINES)
