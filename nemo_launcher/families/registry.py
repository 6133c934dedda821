# SPDX-License-Identifier: Apache-2.0
"""The registry of model families."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from nemo_launcher.config.families import FAMILIES, engine_of
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.families.family import AnyFamily, HuggingFaceModel
from nemo_launcher.families.gpt.family import GPT
from nemo_launcher.families.t5.family import T5
from nemo_launcher.files.values import Section

# A family's functions take its own model, samples and batches alone: they are given nothing else.
ENGINES = cast("dict[str, AnyFamily]", {family.name: family for family in (T5, GPT)})
"""The families by their names in config.families; the first one that owns an adapter applies."""


def family_of_checkpoint(config: Section) -> AnyFamily:
    """Return the family of a base checkpoint with this configuration."""
    return ENGINES[engine_of(config)]


def family_of_adapter(keys: Iterable[str]) -> AnyFamily:
    """Return the family of an adapter with these keys in its state dict."""
    names = list(keys)
    return next(family for family in ENGINES.values() if family.owns_adapter(names))


def family_of_model(model: nn.Module) -> AnyFamily:
    """Return the family of a frozen model."""
    return next(family for family in ENGINES.values() if isinstance(model, family.model_class))


def hugging_face_model(model_type: str) -> HuggingFaceModel:
    """Return the converter of Hugging Face models of this type."""
    return next(family.hugging_face[model_type] for family in ENGINES.values() if model_type in family.hugging_face)


def check_family(found: AnyFamily, expected: str | None, source: str) -> None:
    """Raise UserError unless `found` is the family that a stage expects (a name of config.families; None for any)."""
    if expected is None:
        return
    if expected not in FAMILIES:
        what = f"unknown model family {expected!r}"
        raise UserError(Problem("run.model_family", what, did_you_mean(expected, FAMILIES)))
    wanted = ENGINES[FAMILIES[expected].engine]
    if found is not wanted:
        what = f"is a {found.title} checkpoint, but the stage is for {wanted.title} ({expected})"
        fix = f"use a {wanted.title} base, or the stage's {found.title} configuration"
        raise UserError(Problem(source, what, fix))
