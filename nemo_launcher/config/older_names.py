# SPDX-License-Identifier: Apache-2.0
"""Keys that were renamed since older releases, and keys that NVIDIA's launcher names otherwise."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

_OF_LEARNING = {"trainer.replace_sampler_ddp": "trainer.use_distributed_sampler"}
_BELOW_MODEL = ("adapter_model_file", "language_model_path", "data_paths", "pred_file_path", "ground_truth_file_path")
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
OLDER_NAMES: dict[str, dict[str, str]] = {
    "adapter_learning": _OF_LEARNING,
    "ia3_learning": _OF_LEARNING,
    "evaluation": {
        "gpt_model_file": "language_model_path",
        "model.gpt_model_file": "language_model_path",
        "data.test_ds": "data_paths",
        **{f"model.{key}": key for key in (*_BELOW_MODEL, *_SIZES)},
    },
}
"""Maps a stage to {an older key: its current key}, both within the stage's section."""

ABSENT = object()


def with_current_names(section: object, stage: str, given: Collection[str] = ()) -> object:
    """Return a copy of a stage's section with renamed keys; an older key that is set takes precedence.

    given: the full keys on the command line; a current key among them takes precedence over an older one in a file.
    """
    section = copy.deepcopy(section)
    for older, current in OLDER_NAMES.get(stage, {}).items():
        value = take(section, older)
        yields = f"{stage}.{current}" in given and f"{stage}.{older}" not in given
        if value is not ABSENT and value is not None and not yields:
            _put(section, current, value)
    return section


def is_older(key: str) -> bool:
    """Return whether a full key has been renamed."""
    stage, _, rest = key.partition(".")
    return rest in OLDER_NAMES.get(stage, {})


def at(config: object, keys: Sequence[str]) -> object:
    """Return the value at a path of keys, or ABSENT."""
    for key in keys:
        if not isinstance(config, Mapping) or key not in config:
            return ABSENT
        config = config[key]
    return config


def take(section: object, path: str) -> object:
    """Remove a dotted key from a section, and the sections above that it leaves empty; return its value, or ABSENT."""
    key, _, rest = path.partition(".")
    if not isinstance(section, dict) or key not in section:
        return ABSENT
    if not rest:
        return section.pop(key)
    value = take(section[key], rest)
    if value is not ABSENT and section[key] == {}:
        del section[key]
    return value


def _put(section: object, path: str, value: object) -> None:
    *parents, last = path.split(".")
    node = at(section, parents)
    if isinstance(node, dict):
        node[last] = value
