# SPDX-License-Identifier: Apache-2.0
"""Attention windows in Hugging Face's configurations, as settings of `model_config.yaml`."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Settings
from nemo_launcher.files.values import Section, whole

SLIDING = "sliding_attention"
"""The entry of `layer_types` of a layer with a window."""
_LAYER_TYPES = (SLIDING, "full_attention")


def window_problems(config: Section) -> list[str]:
    """Return what is not supported of `sliding_window` and `layer_types`."""
    problems = []
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is not None and not (type(window) is int and window > 0):
        problems.append(f"sliding_window {window!r}")
    if kinds is None:
        return problems
    layers = config.get("num_hidden_layers")
    if not isinstance(kinds, list) or not all(kind in _LAYER_TYPES for kind in kinds):
        problems.append(f"layer_types other than {' and '.join(_LAYER_TYPES)}")
    elif len(kinds) != layers:
        problems.append(f"layer_types with {len(kinds)} entries for {layers} layers")
    return problems


def window_settings(config: Section, *, all_layers: bool = False, always: bool = False) -> Settings:
    """Return the settings of the layers with a window; none if no sequence can be longer than it.

    all_layers: every layer has the window; otherwise those that `layer_types` names. always: also then, since the
    layers differ in more than the window.
    """
    window, layers = whole(config, "sliding_window"), whole(config, "num_hidden_layers") or 0
    kinds = config.get("layer_types")
    named = kinds if isinstance(kinds, list) else []
    digits = [1] * layers if all_layers else [int(kind == SLIDING) for kind in named]
    if not window or not any(digits):
        return {}
    if window >= (whole(config, "max_position_embeddings") or 0) and not always:
        return {}
    return {"window_size": [window - 1, 0], "window_attn_skip_freq": digits}
