# SPDX-License-Identifier: Apache-2.0
"""Check model files: they exist, are readable, have the right kind, and their sizes divide over the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from nemo_launcher.adapters.peft import METHODS, method_mismatch, method_name
from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.checkpoint.outline import Outline, StackSizes, is_adapter, stack_sections, stack_sizes
from nemo_launcher.checkpoint.sources import check_source
from nemo_launcher.config.families import FAMILIES, engine_of
from nemo_launcher.config.layers import range_problems
from nemo_launcher.conversion.target import check_target
from nemo_launcher.data.tokenizer_kinds import absent_files
from nemo_launcher.errors import Problem, UserError, nearest
from nemo_launcher.files.values import below
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Input, Stage
from nemo_launcher.launcher.stages import Conversion, Evaluation, Learning
from nemo_launcher.megatron.sizes import (
    ParallelSizes,
    check_division,
    encoder_and_decoder_stages,
    head_problems,
    size_problems,
)


def check_models(stage: Stage, earlier: list[Stage], later: list[Stage], probe: LaunchProbe) -> list[Problem]:
    """Check the models that a stage reads, except those that an earlier stage makes."""
    made = {output.absolute(): other for other in earlier for output in other.outputs()}
    problems: list[Problem] = []
    for needed in stage.inputs():
        path = needed.path.absolute()
        if path in made:
            problems += _check_made(stage, needed, made[path])
            continue
        if not path.exists():
            problems.append(_absent(needed, earlier, later))
        elif not os.access(path, os.R_OK):
            problems.append(Problem(needed.key, f"you may not read {path}", f"chmod a+r {path}, or copy it"))
        elif needed.kind == "source":
            assert isinstance(stage, Conversion)
            problems += _check_source(stage, needed)
        else:
            problems += _check_archive(stage, needed, probe)
    return problems


def _absent(needed: Input, earlier: list[Stage], later: list[Stage]) -> Problem:
    path = needed.path.absolute()
    what = f"{needed.title} {path} does not exist"
    maker = next((s for s in later if path in [output.absolute() for output in s.outputs()]), None)
    if maker is not None:
        return Problem(needed.key, what, f"{maker.name} makes it: put that stage first in stages")
    return Problem(needed.key, what, _better_path(needed, earlier) or needed.fix)


def _better_path(needed: Input, earlier: list[Stage]) -> str | None:
    """Suggest the file that was probably meant: one from an earlier stage, or in the other documented place."""
    made: list[Path] = []
    if needed.kind == "base":
        made = [output for stage in earlier if isinstance(stage, Conversion) for output in stage.outputs()]
        folder = needed.path.absolute().parent
        other = folder.parent / needed.path.name if folder.name == "results" else folder / "results" / needed.path.name
        made += [other] if other.exists() else []
        made = made or [path for stage in earlier for path in _bases(stage, needed.title) if path.exists()]
    elif needed.key.startswith(Evaluation.name):
        trained = [stage for stage in earlier if isinstance(stage, Learning)]
        if trained and trained[-1].name.partition("_")[0] not in needed.fix:
            return f"{trained[-1].name} makes a different one: choose evaluation={_evaluation_of(trained[-1])}"
        made = [output for stage in trained for output in stage.outputs()] or _adapters_beside(needed.path.absolute())
    return f"use the one that exists or will be made: {needed.key}={made[-1]}" if made else None


def _adapters_beside(path: Path) -> list[Path]:
    """Return the archive in a sibling job folder whose task has the most similar name."""
    folder, below = path.parent.parent, Path(path.parent.name, path.name)
    method, learning, task = folder.name.partition("_learning_")
    try:
        beside = [other.name for other in folder.parent.iterdir() if (other / below).is_file()]
    except OSError:
        return []
    start = method + learning
    meant = nearest(task, [name.removeprefix(start) for name in beside if name.startswith(start)])
    return [folder.parent / f"{start}{meant}" / below] if meant is not None else []


def _bases(stage: Stage, title: str) -> list[Path]:
    return [needed.path for needed in stage.inputs() if needed.kind == "base" and needed.title == title]


def _evaluation_of(stage: Learning) -> str:
    return f"{stage.name.partition('_')[0]}_{stage.choice}"


def _check_source(stage: Conversion, needed: Input) -> list[Problem]:
    """Check a model to be converted from its configuration and weight headers, and the target of the conversion."""
    problems = []
    is_part = stage.section.model.hf_language_model
    for check in (
        partial(check_source, needed.path, language_model=is_part),
        partial(check_target, needed.path, stage.outputs()[0]),
    ):
        try:
            check()
        except UserError as error:
            problems += error.problems
    return [_with_key(problem, needed.key) for problem in problems]


def _with_key(problem: Problem, key: str) -> Problem:
    """Return a conversion's problem under the full key; a problem with a file keeps the file in its text."""
    prefix = key.rpartition("model.")[0]
    if problem.where.startswith("model."):
        return Problem(f"{prefix}{problem.where}", problem.what, problem.fix)
    return Problem(key, f"{problem.where}: {problem.what}", problem.fix)


def _check_archive(stage: Stage, needed: Input, probe: LaunchProbe) -> list[Problem]:
    try:
        outline = probe.outline(needed.path)
    except UserError as error:
        return [Problem(needed.key, f"{problem.where}: {problem.what}", problem.fix) for problem in error.problems]
    if outline is None:
        return []
    if needed.kind == "adapter":
        if is_adapter(outline.config):
            return _check_method(stage, needed, outline)
        if "tokenizer" not in outline.config:
            return []
        what = f"{needed.path} is a base model, not an adapter"
        return [Problem(needed.key, what, "name the .nemo file that a learning stage wrote")]
    return list(_check_kind(stage, needed, outline)) or [
        *_check_content(needed, outline),
        *_check_sizes(stage, needed, outline),
    ]


def _check_method(stage: Stage, needed: Input, outline: Outline) -> list[Problem]:
    """Check that an evaluation's method is that of its archive, since the results carry the method's name."""
    if not isinstance(stage, Evaluation):
        return []
    problem = method_mismatch(stage.method, outline.config, needed.path)
    return [] if problem is None else [Problem(needed.key, problem, _other_choice(stage, method_name(outline.config)))]


def _check_made(stage: Stage, needed: Input, maker: Stage) -> list[Problem]:
    """Check the method as `_check_method` does, for an adapter that an earlier stage makes."""
    method = maker.name.partition("_")[0]
    if not isinstance(stage, Evaluation) or needed.kind != "adapter" or {stage.method, method} != METHODS.keys():
        return []
    what = f"{needed.path} will contain {METHODS[method]}, but this evaluation is for {METHODS[stage.method]}"
    return [Problem(needed.key, what, _other_choice(stage, method))]


def _other_choice(stage: Evaluation, method: str) -> str:
    return f"evaluation={method}{stage.choice.removeprefix(stage.method)}"


def _check_kind(stage: Stage, needed: Input, outline: Outline) -> Iterator[Problem]:
    """Check that the archive is a base model of the stage's family."""
    if is_adapter(outline.config):
        what = f"{needed.path} is an adapter, not a base model"
        trained_in = outline.config.get("language_model_path") or outline.config.get("restore_from_path")
        yield Problem(needed.key, what, f"it was trained in {trained_in}")
    elif stage.family in FAMILIES and engine_of(outline.config) != FAMILIES[stage.family].engine:
        kind = engine_of(outline.config).upper()
        what = f"{needed.path} is a {kind} model, but {stage.name}={stage.choice} is for {FAMILIES[stage.family].title}"
        yield Problem(needed.key, what, f"name another base model, or choose the stage's file for {kind}")


def _check_content(needed: Input, outline: Outline) -> Iterator[Problem]:
    """Check that the archive contains weights and tokenizer."""
    if outline.sizes is None:
        return
    weights = outline.weights_problem()
    if weights is not None:
        yield Problem(needed.key, f"{weights.where}: {weights.what}", weights.fix)
    problem = absent_files(below(outline.config, "tokenizer"), outline.sizes.keys(), str(needed.path))
    if problem is not None:
        yield Problem(needed.key, f"{problem.where}: {problem.what}", problem.fix)


def _check_sizes(stage: Stage, needed: Input, outline: Outline) -> list[Problem]:
    """Check that the base model's sizes are valid and divide over tensor ranks and pipeline stages."""
    sections = stack_sections(outline.config)
    wrong = [p for section in sections.values() for p in size_problems(section, str(outline.path))]
    wrong = wrong or [p for section in sections.values() for p in head_problems(section, str(outline.path))]
    if wrong:
        return [Problem(needed.key, f"{p.where}: {p.what}", p.fix) for p in dict.fromkeys(wrong)]
    layers = _check_layers(stage, {name: stack_sizes(section) for name, section in sections.items()})
    if stage.parallel is None:
        return layers
    parallel = ParallelSizes.of(stage.parallel)
    try:
        counts = [stages.count for stages in encoder_and_decoder_stages(parallel)]
    except UserError:  # already reported by the check of the configuration
        return layers
    counts = counts if len(sections) > 1 else [parallel.pipeline]
    problems = dict.fromkeys(layers)
    for (name, section), count in zip(sections.items(), counts, strict=True):
        try:
            stack = name if len(sections) > 1 else "model"
            check_division(stack_sizes(section), tensor=parallel.tensor, pipeline=count, stack=stack)
        except UserError as error:
            for p in error.problems:
                problems[Problem(stage.parallel_key(p.where), f"{p.what} ({outline.path})", p.fix)] = None
    return list(problems)


def _check_layers(stage: Stage, stacks: Mapping[str, StackSizes]) -> list[Problem]:
    """Check that the base has the layers, and what in them, that a training puts adapters into."""
    if not isinstance(stage, Learning):
        return []
    model = stage.config["model"]
    block, settings = stage.key(f"model.{method_of(model).block}"), settings_of(model)
    problems = range_problems(
        settings.layers, {name: sizes.num_layers for name, sizes in stacks.items()}, f"{block}.layers"
    )
    return problems + (settings.expert_problems(block) if any(s.experts > 1 for s in stacks.values()) else [])
