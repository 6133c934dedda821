# SPDX-License-Identifier: Apache-2.0
"""Report settings that have no effect because another setting, their switch, is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.clusters import registry
from nemo_launcher.clusters.base import EDGES
from nemo_launcher.config.ignored import LEARNING
from nemo_launcher.config.older_names import ABSENT, at
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.errors import Problem
from nemo_launcher.launcher.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """A setting, or all settings of a section, with an effect only while a switch is on."""

    sections: tuple[str, ...]
    """The stages that have both keys."""
    key: str
    """The setting's key within the stage."""
    switch: str
    """The switch's key within the stage."""
    on: bool = True
    """The switch's value with which the setting has an effect."""
    documented: tuple[object, ...] = (None,)
    """Values that are accepted without a warning."""
    below: tuple[str, ...] = ()
    """Keys below `key` that always have an effect."""


_MANAGER = "exp_manager"
CONDITIONAL = (
    Conditional(
        sections=LEARNING,
        key=f"{_MANAGER}.wandb_logger_kwargs",
        switch=f"{_MANAGER}.create_wandb_logger",
        below=("project", "name"),
    ),
    Conditional(
        sections=LEARNING,
        key=f"{_MANAGER}.early_stopping_callback_params",
        switch=f"{_MANAGER}.create_early_stopping_callback",
    ),
    Conditional(
        sections=LEARNING,
        key=f"{_MANAGER}.summary_writer_kwargs",
        switch=f"{_MANAGER}.create_tensorboard_logger",
    ),
    Conditional(
        sections=LEARNING,
        key=f"{_MANAGER}.mlflow_logger_kwargs",
        switch=f"{_MANAGER}.create_mlflow_logger",
    ),
    *(
        Conditional(
            sections=("evaluation",),
            key=f"inference.{key}",
            switch="inference.greedy",
            on=False,
            documented=documented,
        )
        for key, documented in (
            ("top_k", (0,)),
            ("top_p", (0.9, 0.0, 1.0)),
            ("temperature", (1.0,)),
            ("repetition_penalty", (1.2, 1.0)),
        )
    ),
)
T5_ONLY = (
    "model.decoder_seq_length",
    "model.data.add_sentinel_to_input",
    "model.data.add_eos_to_decoder_output",
    "model.data.decoder_starts_with_pad",
)


def without_switch(stage: Stage) -> list[Problem]:
    """Return a warning for each setting of a stage that has no effect because of another setting."""
    problems = []
    for entry in CONDITIONAL:
        if stage.name not in entry.sections or at(stage.config, entry.switch.split(".")) is entry.on:
            continue
        given = [key for key in _given(stage.config, entry) if key]
        if given:
            more = f", nor have {', '.join(stage.key(key) for key in given[1:])}" if given[1:] else ""
            what = f"has no effect without {stage.key(entry.switch)}={entry.on}{more}"
            problems.append(Problem(stage.key(given[0]), what, _switch_on(stage, entry)))
    sizes = stage.parallel
    if isinstance(sizes, Ia3Model) and sizes.sequence_parallel and not sizes.splits_tokens:
        key = stage.parallel_key("sequence_parallel")
        what = f"has no effect: {stage.parallel_key('tensor_model_parallel_size')} is 1, so no ranks share tokens"
        problems.append(Problem(key, what, f"{key}=False"))
    if stage.name in LEARNING and stage.family != "t5":
        keys = [key for key in T5_ONLY if at(stage.config, key.split(".")) not in (ABSENT, None)]
        problems += [Problem(stage.key(key), f"has no effect: {stage.family} has no decoder") for key in keys]
    return problems


def _given(config: Mapping[str, object], entry: Conditional) -> Iterator[str]:
    value = at(config, entry.key.split("."))
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in entry.below and item is not None:
                yield f"{entry.key}.{key}"
    elif value is not ABSENT and value not in entry.documented:
        yield entry.key


def _switch_on(stage: Stage, entry: Conditional) -> str:
    plus = "++" if at(stage.config, entry.switch.split(".")) is ABSENT else ""
    return f"{plus}{stage.key(entry.switch)}={entry.on}, or leave it out"


def on_other_clusters(overrides: Sequence[str], cluster_type: str) -> list[Problem]:
    """Return a warning for each key on the command line that has an effect only on other cluster types."""
    problems = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        top = key.partition(".")[0]
        of_stage = next((name for name in ("run.time_limit", "run.dependency") if key.endswith(f".{name}")), None)
        types = registry.counts_on(of_stage or top)
        if not types or cluster_type in types or (of_stage == "run.dependency" and value in EDGES):
            continue
        if (top == "cluster" and key == top) or value in ("null", ""):
            continue
        what = f"has no effect: cluster_type is {cluster_type}"
        problems.append(Problem(key, what, f"leave it out, or: cluster_type={types[0]}"))
    return problems
