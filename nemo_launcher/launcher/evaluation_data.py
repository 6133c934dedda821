# SPDX-License-Identifier: Apache-2.0
"""The test data that a training names (model.data.test_ds), as the data of its adapter's evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.config.datasets import dataset_of_file
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.launcher.composed import Composed
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import Evaluation, Learning

KEY = "model.data.test_ds"
_DATA, _TRUTH, _ADAPTER = "data_paths", "ground_truth_file_path", "adapter_model_file"


def with_test_data(
    section: Mapping[str, object], composed: Composed, probe: LaunchProbe
) -> tuple[dict[str, object], list[str]]:
    """Return an evaluation's section with its training's test data, and a line that says so.

    The training is the one in the configuration that makes its adapter, or else the one that made the archive. Its test
    data replaces only files of a published dataset, as the shipped files name them, and never what the command line
    names. The ground truth then comes from the data, unless it is the user's.
    """
    tests = _of_configuration(section, composed.config)
    if tests is None:
        tests = _of_archive(section, probe)
    if not tests or _is_given(_DATA, section, composed):
        return dict(section), []
    changed = dict(section) | {_DATA: tests}
    if not _is_given(_TRUTH, section, composed):
        changed[_TRUTH] = None
    return changed, [f"{_DATA} is the training's {KEY}: {', '.join(tests)}"]


def _of_configuration(section: Mapping[str, object], config: Mapping[str, object]) -> list[str] | None:
    """Return the test data of the training in the configuration; None if none of it makes the adapter."""
    trainings = [config.get(stage.name) for stage in Learning.__subclasses__()]
    adapter = section.get(_ADAPTER)
    for training in trainings:
        made = value_of(training, "model.nemo_path")
        if isinstance(made, str) and isinstance(adapter, str) and os.path.abspath(made) == os.path.abspath(adapter):
            return _texts(value_of(training, KEY))
    return None


def _of_archive(section: Mapping[str, object], probe: LaunchProbe) -> list[str]:
    adapter = section.get(_ADAPTER)
    outline = probe.known_outline(Path(adapter)) if isinstance(adapter, str) else None
    return [] if outline is None else _texts(value_of(outline.config, KEY.removeprefix("model.")))


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _is_given(key: str, section: Mapping[str, object], composed: Composed) -> bool:
    """Return whether the user has set a key: on the command line, or to other files than those of a dataset."""
    named = [override.lstrip("+~").partition("=")[0] for override in composed.overrides]
    if any(name.split(".")[:2] == [Evaluation.name, key] for name in named):
        return True
    value = section.get(key)
    files = value if isinstance(value, list) else [value]
    return value is not None and not all(isinstance(f, str) and dataset_of_file(Path(f).name) for f in files)
