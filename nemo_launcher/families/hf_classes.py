# SPDX-License-Identifier: Apache-2.0
"""Classes and configurations of transformers, the same for its versions 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.checkpoint.architectures.rope_keys import older_keys, rope_parameters
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.values import Section
from nemo_launcher.requirements import is_transformers_5

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_NEWER = "install transformers 5"


def model_class(architecture: str, source: str) -> type[PreTrainedModel]:
    """Return the class of an architecture. source: what it is needed for, in messages.

    Raises UserError if the installed version does not have it.
    """
    import transformers

    found: type[PreTrainedModel] | None = getattr(transformers, architecture, None)
    if found is None:
        raise UserError(Problem(source, f"transformers {transformers.__version__} has no {architecture}", _NEWER))
    return found


def read_configuration(architecture: str, values: Section, source: str) -> PretrainedConfig:
    """Return transformers' configuration object, which has `rope_parameters` in each version.

    source: the file, for messages. Raises UserError for what the installed version does not compute.
    """
    import transformers

    config_class = model_class(architecture, source).config_class
    if is_transformers_5():
        return config_class.from_dict(dict(values))
    kind = ARCHITECTURES[architecture].kind
    given, older = {key: value for key, value in values.items() if key != "rope_parameters"}, older_keys(kind, values)
    scaling = older.pop("rope_scaling", None)
    config: PretrainedConfig = config_class.from_dict(given | older)
    if scaling is not None:  # set here, since some classes accept less of it than they compute
        config.rope_scaling = scaling
    if getattr(config, "qk_layernorm", False) and kind == "stablelm":  # its initialization needs biases
        what = f"transformers {transformers.__version__} cannot create a StableLM with it"
        raise UserError(Problem(f"{source}: qk_layernorm", what, _NEWER))
    wanted, config.rope_parameters = values.get("rope_parameters"), rope_parameters(kind, config.to_dict())
    if isinstance(wanted, Mapping) and not _has(config.rope_parameters, wanted):
        what = f"transformers {transformers.__version__} does not compute these rotary positions of {architecture}"
        raise UserError(Problem(f"{source}: rope_parameters", what, _NEWER))
    return config


def num_experts(config: PretrainedConfig) -> int:
    """Return the number of experts; 0 for Mixtral in transformers 4, which names weights as files do."""
    return int(getattr(config, "num_experts", 0) or 0)


def _has(found: object, wanted: Mapping[str, object]) -> bool:
    """Return whether a configuration has the wanted rotary positions; it may have more keys, with defaults."""
    return isinstance(found, Mapping) and all(
        _has(found.get(key), value) if isinstance(value, Mapping) else found.get(key) == value
        for key, value in wanted.items()
        if value is not None and key != "type"
    )
