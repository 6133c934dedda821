# SPDX-License-Identifier: Apache-2.0
"""The methods whose adapters are changes of linear layers, which is what other programs can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.adapters.archive import check_base, check_state, read_adapter, save_adapter
from nemo_launcher.adapters.forms import ia3, lora
from nemo_launcher.adapters.forms.changes import Changes, Target, adapters_of
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.adapters.registry import method_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.described import describe_model, hugging_face_form

FromChanges = Callable[[Changes, Target, str], tuple[dict[str, object], AdapterState]]


@dataclass(frozen=True, slots=True)
class Form:
    """How the adapters of a method change linear layers."""

    to_changes: Callable[[AdapterSet, AdapterState, Target], Changes]
    """Returns the changes of an adapter."""
    from_changes: FromChanges
    """Returns the settings and the state of an adapter; raises UserError for what it cannot hold."""


FORMS: Mapping[str, Form] = {
    "ia3": Form(ia3.to_changes, ia3.from_changes),
    "lora": Form(lora.to_changes, lora.from_changes),
}
"""The methods by name; bottleneck adapters add layers, so they are not here."""


@dataclass(frozen=True, slots=True)
class OpenedAdapter:
    """An adapter and its base."""

    path: str
    """The adapter's file."""
    config: dict[str, object]
    """Its configuration."""
    adapters: AdapterSet
    """Its places and settings."""
    target: Target
    """The base as a Hugging Face model."""
    changes: Changes
    """What it changes."""


def open_target(base: str | Path) -> Target:
    """Return a base as a Hugging Face model. Raises UserError if it is unreadable or no architecture computes it."""
    model = describe_model(base)
    return Target(model, hugging_face_form(model))


def open_adapter(path: str | Path, base: str | Path, instead: str) -> OpenedAdapter:
    """Return an adapter as changes of a base's linear layers; instead: what to do with an adapter that is none.

    Raises UserError if either file is unreadable, if the adapter belongs to another base, or if its method adds layers.
    """
    config, state = read_adapter(path)
    method = method_of(config)
    form = FORMS.get(method.name)
    if form is None:
        what = f"holds a {method.name}, which adds layers that no weight of the base can contain"
        raise UserError(Problem(str(path), what, instead))
    target = open_target(base)
    check_base(config, state, target.model.base, str(path))
    check_state(state, str(path))
    adapters = adapters_of(target.model, config)
    adapters.check(state, str(path))
    return OpenedAdapter(str(path), config, adapters, target, form.to_changes(adapters, state, target))


def save_imported(
    output: str | Path,
    settings: Mapping[str, object],
    state: AdapterState,
    target: Target,
    base: str | Path,
    origin: Mapping[str, str],
) -> tuple[dict[str, object], int]:
    """Write an adapter of another program as a `.nemo`; return its configuration and the number of its parameters.

    settings: of its method, as in an archive; origin: the other program and its folder.
    """
    model = target.model.base
    config = dict(settings) | {
        "language_model_path": str(Path(base).absolute()),
        "base_fingerprint": model.fingerprint,
        "base_settings": model.settings,
        "base_checksum": model.checksum,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "existing_tasks": [],
        "new_tasks": [],
        "imported_from": dict(origin),
    }
    save_adapter(output, config, state)
    return config, sum(tensor.numel() for part in state.values() for tensor in part.values())
