# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in Hugging Face's configurations, as settings of `model_config.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nemo_launcher.checkpoint.architectures.architecture import Settings
from nemo_launcher.files.values import Section, below, number, whole

_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "dynamic": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""Type -> the numbers that it needs."""
_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "llama_4_scaling_beta")
_ALL = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "truncate"),
    *("original_max_position_embeddings", "max_position_embeddings"),
}
_LISTS = {"short_factor", "long_factor"}
_NUMBERS = {"rope_theta", "partial_rotary_factor", *_OPTIONAL, *(n for names in _KEYS.values() for n in names)} - _LISTS


_SECTIONS = ("rope_parameters", "rope_scaling")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_COMMON = ("default", "linear", "llama3", "yarn", "dynamic")


def rotary_problems(config: Section, types: Sequence[str] = _COMMON) -> list[str]:
    """Return what is not supported of a configuration's rotary positions, which older files call rope_scaling.

    types: the types that the architecture supports.
    """
    return [
        problem for name in _SECTIONS if config.get(name) for problem in _section_problems(config[name], name, types)
    ]


def layered_problems(config: Section) -> list[str]:
    """Return what is not supported, where `rope_parameters` may have a section for each type of layer."""
    section = config.get("rope_parameters")
    if not isinstance(section, Mapping) or not section.keys() & set(_LAYER_TYPES):
        return rotary_problems(config)
    problems = [f"rope_parameters.{key}" for key in sorted(map(str, section.keys() - set(_LAYER_TYPES)))]
    for name, types in zip(_LAYER_TYPES, (_COMMON, ("default",)), strict=True):
        problems += _section_problems(section.get(name, {}), f"rope_parameters.{name}", types)
    return problems + rotary_problems({**config, "rope_parameters": None})


def longrope_problems(config: Section) -> list[str]:
    """Return what is not supported, for an architecture with LongRoPE."""
    return rotary_problems(config, ("default", "longrope", "su"))


def _section_problems(section: object, name: str, types: Sequence[str]) -> list[str]:
    """Return what is not supported of one section."""
    if not isinstance(section, Mapping):
        return [f"{name} {_short(section)}"]
    kind = section.get("rope_type", section.get("type", "default"))
    if kind not in types or not isinstance(kind, str):
        return [f"{name} of type {_short(kind)}"]
    kind = "longrope" if kind == "su" else kind  # its name in older files
    problems = [f"{name} of type {kind} without {key}" for key in _KEYS[kind] if section.get(key) is None]
    problems += [
        f"{name}.{key} {_short(section[key])}"
        for key in sorted(_NUMBERS & section.keys())
        if section[key] is not None and not _is_positive(section[key])
    ]
    problems += [
        f"{name}.{key} {_short(section[key])}"
        for key in ("short_factor", "long_factor")
        if key in _KEYS[kind] and key in section and not _are_positive(section[key])
    ]
    unknown = section.keys() - _ALL - set(_KEYS[kind]) - (set(_OPTIONAL) if kind in ("yarn", "longrope") else set())
    return problems + [f"{name}.{key}" for key in sorted(map(str, unknown))]


def _are_positive(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_positive, values))


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def rotary_settings(config: Section) -> Settings:
    """Return the settings of a complete configuration, in which transformers has filled in rope_parameters."""
    section = config.get("rope_parameters")
    rope = section if isinstance(section, Mapping) else {}
    return {
        "rotary_percentage": float(rope.get("partial_rotary_factor") or 1.0),
        "rotary_base": rope["rope_theta"],
        **scaling_settings(rope),
    }


def scaling_settings(rope: Mapping[str, object]) -> Settings:
    """Return the settings that extend rotary positions beyond the original context length.

    `dynamic` changes nothing up to the maximum length, which sequences here do not exceed.
    """
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return {"seq_len_interpolation_factor": rope["factor"]}
    if kind == "llama3":
        return {
            "scale_positional_embedding": True,
            "scale_factor": rope["factor"],
            "low_freq_factor": rope["low_freq_factor"],
            "high_freq_factor": rope["high_freq_factor"],
            "old_context_len": rope["original_max_position_embeddings"],
        }
    return _yarn_settings(rope) if kind == "yarn" else {}


def layered_settings(config: Section) -> tuple[Section, Settings]:
    """Return a complete configuration with the rotary positions of layers without a window, and settings of the others.

    The configuration has a section of rope_parameters for each type of layer.
    """
    sections = below(config, "rope_parameters")
    full, sliding = (below(sections, name) for name in _LAYER_TYPES)
    is_same = full.get("rope_theta") == sliding.get("rope_theta") and full.get("rope_type") == "default"
    own: Settings = {} if is_same else {"rotary_base_local": sliding["rope_theta"]}
    return {**config, "rope_parameters": full}, own


def longrope_settings(config: Section) -> Settings:
    """Return the settings of LongRoPE (arXiv:2402.13753), with the original length as `length`; none without it.

    Up to the original length, which is the limit here, the short factors apply.
    """
    rope = below(config, "rope_parameters")
    if rope.get("rope_type") != "longrope":
        return {}
    length = whole(rope, "original_max_position_embeddings") or whole(config, "original_max_position_embeddings") or 1
    factor = number(rope, "factor") or (whole(config, "max_position_embeddings") or length) / length
    own = number(rope, "attention_factor")
    if own is None:
        own = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return {"length": length, "longrope_short_factor": rope["short_factor"], "longrope_attention_factor": own}


def _yarn_settings(rope: Mapping[str, object]) -> Settings:
    """Return the settings of YaRN (arXiv:2309.00071), under megatron-core's names."""
    factor = float(str(rope["factor"]))
    own, top, bottom = (rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if own is None:
        own = _magnitude(factor, top) / _magnitude(factor, bottom) if top and bottom else _magnitude(factor, 1.0)
    optional = {"yarn_beta_fast": rope.get("beta_fast"), "yarn_beta_slow": rope.get("beta_slow")}
    return {
        "yarn_scaling_factor": factor,
        "yarn_original_max_position_embeddings": rope["original_max_position_embeddings"],
        "yarn_correction_range_round_to_int": rope.get("truncate", True) is not False,
        "yarn_attention_factor": own,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _magnitude(factor: float, scale: object) -> float:
    return 0.1 * float(str(scale)) * math.log(factor) + 1.0 if factor > 1 else 1.0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
