# SPDX-License-Identifier: Apache-2.0
"""Models of the Hugging Face Hub in a launch: fetched into the hub's cache before a conversion starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.checkpoint.hub_model import FetchedModel, HubModel, fetched, model_named
from nemo_launcher.checkpoint.hub_model_fetch import LANGUAGE_MODEL
from nemo_launcher.checkpoint.language_model import KEY
from nemo_launcher.config.automatic import with_values
from nemo_launcher.config.resume_rules import value_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.hub.fetching import run_child

SOURCE = "model.hf_model_path"
"""The key of a conversion that names its model."""


@dataclass(frozen=True, slots=True)
class ModelFromHub:
    """A model of the hub that a conversion reads."""

    source: HubModel
    """The model."""
    record: Path
    """The file that says what was fetched, below data_dir."""
    language_model: bool = False
    """Whether the conversion asks for the language model of a multi-modal model."""

    def fetched(self) -> FetchedModel | None:
        """Return the fetched model; None before a launch has fetched it."""
        return fetched(self.source, self.record)

    def is_fetched(self) -> bool:
        return self.fetched() is not None

    def described(self) -> str:
        found = self.fetched()
        if found is None:
            return f"{self.source}: is fetched at launch, to the hub's cache"
        return f"{self.source}: commit {found.model.revision}, in {found.path}"

    def fetch(self) -> list[Problem]:
        arguments = [str(self.source), str(self.record), *([LANGUAGE_MODEL] if self.language_model else [])]
        return run_child("nemo_launcher.checkpoint.hub_model_fetch", arguments, str(self.source), {})


def with_hub_model(section: dict[str, object], data_dir: Path) -> tuple[dict[str, object], list[ModelFromHub]]:
    """Return a conversion's section with the whole name of its model of the hub, and this model; none for a path."""
    text = value_of(section, SOURCE)
    model = model_named(text, SOURCE) if isinstance(text, str) else None
    if model is None:
        return section, []
    found = ModelFromHub(model, model.record(data_dir), value_of(section, KEY) is True)
    return with_values(section, {SOURCE: str(model)}), [found]


def model_problems(section: Mapping[str, object], name: str) -> list[Problem]:
    """Return the mistakes in the name of a conversion's model. name: the stage's."""
    text = value_of(section, SOURCE)
    try:
        model_named(text, f"{name}.{SOURCE}") if isinstance(text, str) else None
    except UserError as error:
        return error.problems
    return []
