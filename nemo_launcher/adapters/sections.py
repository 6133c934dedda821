# SPDX-License-Identifier: Apache-2.0
"""The adapter_learning and ia3_learning sections, and the section of each stage.

They are not in config because `adapter_tuning` and `ia3_tuning` hold the settings that adapter methods register.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from nemo_launcher.adapters.methods.ia3.config import Ia3Settings
from nemo_launcher.adapters.registry import settings_by_type
from nemo_launcher.adapters.settings import Settings
from nemo_launcher.config.fields import omitted
from nemo_launcher.config.sections import Conversion, DataPreparation, Evaluation, Learning
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.config.variants import Variants

TUNING = Variants("type", settings_by_type)
"""The content of `adapter_tuning`: the settings of its type."""


@dataclass(frozen=True, kw_only=True)
class AdapterModel(Ia3Model):
    """`adapter_learning.model`."""

    adapter_tuning: Annotated[Settings, TUNING]
    """The adapter method and its settings."""


@dataclass(frozen=True)
class AdapterLearning(Learning):
    """`adapter_learning`: trains adapters."""

    model: AdapterModel
    """The base model, the adapter, data and optimizer."""


@dataclass(frozen=True, kw_only=True)
class Ia3LearningModel(Ia3Model):
    """`ia3_learning.model`."""

    ia3_tuning: Ia3Settings | None = omitted(None)
    """The settings of IA3. Not a NeMo key."""


@dataclass(frozen=True)
class Ia3Learning(Learning):
    """`ia3_learning`: trains IA3 vectors."""

    model: Ia3LearningModel
    """The base model, IA3, data and optimizer."""


StageSection: TypeAlias = DataPreparation | Conversion | Learning | Evaluation
"""The section of a stage, whichever it is."""

STAGES: dict[str, type[StageSection]] = {
    "data_preparation": DataPreparation,
    "conversion_hf2nemo": Conversion,
    "adapter_learning": AdapterLearning,
    "ia3_learning": Ia3Learning,
    "evaluation": Evaluation,
}
"""The section of each stage, by the stage's name."""


def learning_section(model: object) -> type[Learning]:
    """Return the section class of a learning job: IA3's if `model` has no `adapter_tuning`, as in NeMo."""
    has_block = isinstance(model, Mapping) and model.get("adapter_tuning") is not None
    return AdapterLearning if has_block else Ia3Learning
