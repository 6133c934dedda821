# SPDX-License-Identifier: Apache-2.0
"""`model.data.traversal`: the order in which trees of common prefixes are executed, and where depth is impossible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from nemo_launcher.config.choice_loss import uses_choices
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.config.overrides import override
from nemo_launcher.errors import Problem

if TYPE_CHECKING:
    from nemo_launcher.config.sections.learning import Ia3Model, Learning

Traversal = Literal["auto", "breadth", "depth"]
"""`breadth`: a tree is one row, or several that repeat its prefix. `depth`: a tree of rows (training.depth_first)."""

PREFIX_MEMORY = 1.5
"""The memory of a token on a path of rows, in tokens of a row.

Besides its activations there are the sums of the gradients of its keys and values, and copies of its keys and values
before those of the row that continues the path.
"""


def traversal_problems(section: Learning, key: Callable[[str], str] = str) -> list[Problem]:
    """Return the settings that rule out `traversal=depth`, if it is asked for; `auto` then means breadth."""
    if section.model.data.traversal != "depth":
        return []
    where, family = key("model.data.traversal"), FAMILIES.get(section.run.model_family or "")
    if family is not None and family.engine == "t5":
        what = "depth is impossible for a T5: every token of its encoder attends to the whole prompt"
        return [Problem(where, what, f"{where}=auto")]
    return [
        Problem(where, f"depth is impossible with {key(name)}={value}: {reason}", override(key(name), instead))
        for name, value, instead, reason in _obstacles(section.model)
        if value != instead
    ]


def allows_depth(model: Ia3Model) -> bool:
    """Return whether the settings allow depth-first execution; the model family may still rule it out."""
    return not uses_choices(model) and all(value == instead for _, value, instead, _ in _obstacles(model))


def _obstacles(model: Ia3Model) -> list[tuple[str, object, object, str]]:
    """Return settings that must have one value: key, value, that value, and the reason."""
    data = model.data
    return [
        ("model.data.share_prefix", data.share_prefix, True, "there are no common prefixes to traverse"),
        ("model.data.pack", data.pack, True, "trees are then cut after micro_batch_size samples"),
        (
            "model.nemo_compat",
            model.nemo_compat,
            False,
            "the loss is then a mean over micro-batches of separate samples",
        ),
        (
            "model.pipeline_model_parallel_size",
            model.pipeline_model_parallel_size,
            1,
            "a stage holds many rows at once",
        ),
        ("model.sequence_parallel", model.splits_tokens, False, "the ranks then split the tokens of each row"),
    ]
