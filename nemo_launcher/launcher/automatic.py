# SPDX-License-Identifier: Apache-2.0
"""Replace `auto` in a learning stage by numbers, as soon as the number of steps is known."""

from __future__ import annotations

from nemo_launcher.adapters.automatic import automatic_values
from nemo_launcher.config.automatic import RATE, WARMUP, automatic_keys, with_values
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.config.training_length import planned_steps
from nemo_launcher.launcher.earlier_run import has_checkpoints, read_earlier
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Learning


def settle(stage: Stage, records: int | None) -> None:
    """Replace what says `auto` in a stage by numbers.

    records: the number of training records; while it is unknown, `auto` stays, and the job replaces it. An earlier
    training in the folder, which the stage will resume, keeps its own numbers, although max_epochs or this release may
    now give others.
    """
    keys = automatic_keys(stage.config)
    if not isinstance(stage, Learning) or not keys:
        return
    steps = planned_steps(stage.section, records)
    values = {} if steps is None else automatic_values(stage.config, steps)
    values |= _of_earlier_run(stage, keys)
    marked = list(dict.fromkeys([*(stage.section.run.automatic or []), *keys]))
    stage.update(with_values(stage.config, values | {"run.automatic": marked}))


def _of_earlier_run(stage: Learning, keys: list[str]) -> dict[str, object]:
    """Return the values that keys had become in the folder's training, if they said `auto` there too."""
    before = read_earlier(stage) if has_checkpoints(stage.folder / "results") else None
    said = value_of(before, "run.automatic")
    return {key: value_of(before, key) for key in keys if isinstance(said, list) and key in said}


def described(stage: Learning) -> str:
    """Return what `auto` has become, for the line about a training; empty if nothing said `auto`, or while it does."""
    said = stage.section.run.automatic or []
    names = {RATE: "learning rate", WARMUP: "warm-up"}
    values = {name: value_of(stage.config, key) for key, name in names.items() if key in said}
    shown = [f"{name} {value:g}" for name, value in values.items() if isinstance(value, (int, float))]
    return f"{' and '.join(shown)} (auto)" if shown else ""
