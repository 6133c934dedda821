# SPDX-License-Identifier: Apache-2.0
"""Keys that were renamed since older releases."""

from __future__ import annotations

import copy

_OF_LEARNING = {"trainer.replace_sampler_ddp": "use_distributed_sampler"}
OLDER_NAMES: dict[str, dict[str, str]] = {
    "adapter_learning": _OF_LEARNING,
    "ia3_learning": _OF_LEARNING,
    "evaluation": {"gpt_model_file": "language_model_path"},
}
"""Maps a stage to {path of an older key: its current name in the same place}."""


def with_current_names(section: object, stage: str) -> object:
    """Return a copy of a stage's section with renamed keys; an older key that is set takes precedence."""
    section = copy.deepcopy(section)
    for path, present in OLDER_NAMES.get(stage, {}).items():
        *parents, older = path.split(".")
        node: object = section
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and (value := node.pop(older, None)) is not None:
            node[present] = value
    return section
