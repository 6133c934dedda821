# SPDX-License-Identifier: Apache-2.0
"""What the layers of some model families compute beyond Megatron-core's GPT: settings from `model_config.yaml`.

Each setting is None in a GPT or Llama, so that their fingerprints (checkpoint.fingerprint) do not depend on this list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_launcher.checkpoint.outline import experts_per_token
from nemo_launcher.errors import Problem, did_you_mean
from nemo_launcher.files.values import Section, number, whole
from nemo_launcher.megatron.alibi import BIASES

QK_NORMS = ("head", "all_heads", "each_head")
"""The values of `qk_layernorm_width`.

A norm over each head with the weights of one head, over all heads together, or over each with weights of its own.
"""
NORM_PLACES = ("before", "after", "around")
"""The values of `sublayer_norms`: where a layer has norms, as seen from attention and feed-forward."""
_NUMBERS = (
    "embedding_multiplier",
    "residual_multiplier",
    "softmax_scale",
    "logits_divisor",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_PATTERNS = ("window_attn_skip_freq", "no_rope_freq")
_EXPERT_SETTINGS: dict[str, tuple[object, ...]] = {
    "moe_ffn_hidden_size": (None,),
    "moe_layer_freq": (1, None),
    "moe_shared_expert_intermediate_size": (None,),
    "moe_router_score_function": ("softmax", None),
    "moe_router_topk_scaling_factor": (None,),
    "moe_router_num_groups": (None,),
    "moe_router_group_topk": (None,),
    "moe_router_enable_expert_bias": (False, None),
    "moe_apply_probs_on_input": (False, None),
    "moe_expert_capacity_factor": (None,),
}
"""Settings of Megatron-core's experts that change the results: only these values are computed."""
VARYING_KEYS = (*_NUMBERS, *_PATTERNS, "sublayer_norms", "qk_layernorm_width", "alibi_bias", "embedding_layernorm")
"""The keys that vary the layers of a GPT if they are set."""


@dataclass(frozen=True, slots=True)
class Variation:
    """The differences between a family's layers and those of a Llama."""

    qk_norm: str | None = None
    """Queries and keys are normalized before rotary positions, as one of QK_NORMS says; None: they are not."""
    norm_place: str | None = None
    """Norms stand `after` attention and feed-forward, or `around` them; None: before them."""
    embedding_multiplier: float | None = None
    """The factor of the embedding's output."""
    residual_multiplier: float | None = None
    """The factor of what a sub-layer adds to the residual."""
    softmax_scale: float | None = None
    """The factor of attention scores; None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """Attention scores x become cap * tanh(x / cap)."""
    logits_softcap: float | None = None
    """Logits x become cap * tanh(x / cap)."""
    logits_divisor: float | None = None
    """The divisor of the logits."""
    window: int | None = None
    """The number of tokens, the own one included, that a token attends to in layers with a window."""
    windowed_layers: str | None = None
    """One digit a layer: 1 if it has the window. None: all have it."""
    is_parallel: bool | None = None
    """Attention and feed-forward both start from the layer's input; None: one after the other."""
    head_bias: bool | None = None
    """The head has a bias; None: it has none."""
    unrotated_layers: str | None = None
    """One digit a layer: 1 if it has no rotary positions. None: all have them."""
    alibi: str | None = None
    """The kind of ALiBi's biases of attention scores (megatron.alibi.BIASES); None: no ALiBi."""
    embedding_norm: bool | None = None
    """A norm follows the embedding; None: none does."""
    experts: int | None = None
    """The number of feed-forwards that a router chooses from; None: one for all tokens."""
    experts_per_token: int | None = None
    """The number of experts that each token uses."""
    router_softmax_first: bool | None = None
    """Experts are weighted by a softmax over all of them; None: over those that the token uses."""

    @classmethod
    def from_config(cls, config: Section) -> Variation:
        """Return the variation in a configuration without `problems`."""
        scaled = bool(config.get("apply_embedding_scaling"))
        hidden = whole(config, "hidden_size") or 1
        windowed = _digits(config.get("window_attn_skip_freq"))
        place = str(config.get("sublayer_norms") or NORM_PLACES[0])
        return cls(
            qk_norm=str(config.get("qk_layernorm_width") or QK_NORMS[0]) if config.get("qk_layernorm") else None,
            norm_place=place if place != NORM_PLACES[0] else None,
            embedding_multiplier=math.sqrt(hidden) if scaled else number(config, "embedding_multiplier"),
            residual_multiplier=number(config, "residual_multiplier"),
            softmax_scale=number(config, "softmax_scale"),
            attention_softcap=number(config, "attn_logit_softcapping"),
            logits_softcap=number(config, "final_logit_softcapping"),
            logits_divisor=number(config, "logits_divisor"),
            window=_window(config) if windowed is not None else None,
            windowed_layers=windowed if windowed is not None and "0" in windowed else None,
            is_parallel=bool(config.get("parallel_attention")) or None,
            head_bias=bool(config.get("tokens_head_bias")) or None,
            unrotated_layers=_digits(config.get("no_rope_freq")),
            alibi=_alibi(config),
            embedding_norm=bool(config.get("embedding_layernorm")) or None,
            **(_experts(config) if has_experts(config) else {}),
        )

    def window_of(self, layer: int) -> int | None:
        """Return the window of a layer, counted from 0, in tokens; None for unlimited attention."""
        return self.window if self.is_windowed(layer) else None

    def is_windowed(self, layer: int) -> bool:
        """Return whether a layer, counted from 0, is one of those with a window."""
        return self.windowed_layers is None or self.windowed_layers[layer] == "1"

    def is_rotated(self, layer: int) -> bool:
        """Return whether a layer, counted from 0, has rotary positions."""
        return self.unrotated_layers is None or self.unrotated_layers[layer] == "0"

    def of_layer(self, layer: int) -> Variation:
        """Return the variation of a model that consists of this layer alone."""
        digits = {
            name: value[layer]
            for name in ("windowed_layers", "unrotated_layers")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **digits)


PLAIN = Variation()


def has_experts(config: Section) -> bool:
    """Return whether a configuration is of a mixture of experts."""
    return (whole(config, "num_moe_experts") or 1) > 1


def _experts(config: Section) -> dict[str, Any]:
    """Return the settings of experts."""
    return {
        "experts": whole(config, "num_moe_experts"),
        "experts_per_token": experts_per_token(config),
        "router_softmax_first": bool(config.get("moe_router_pre_softmax")) or None,
    }


def _window(config: Section) -> int | None:
    """Return the number of tokens that a token attends to; `window_size` is [tokens before the own one, after]."""
    window = config.get("window_size")
    before = window[0] if isinstance(window, list) and window else window
    return before + 1 if isinstance(before, int) and before >= 0 else None


def _alibi(config: Section) -> str | None:
    """Return the kind of ALiBi's biases; NeMo's are exact."""
    return str(config.get("alibi_bias") or BIASES[0]) if config.get("position_embedding_type") == "alibi" else None


def _digits(pattern: object) -> str | None:
    """Return a digit for each layer of Megatron-core's pattern, a list of 0 and 1.

    Source: megatron-core 0.16, TransformerConfig.window_attn_skip_freq and no_rope_freq.
    """
    return "".join(str(int(bool(value))) for value in pattern) if isinstance(pattern, Sequence) else None


def problems(config: Mapping[str, object], source: str) -> list[Problem]:
    """Return the problems in these settings; source: the archive's name, for messages."""
    found = []
    for key in _NUMBERS:
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not a number above 0"))
    choices = {"qk_layernorm_width": QK_NORMS, "sublayer_norms": NORM_PLACES, "alibi_bias": BIASES}
    for key, known in choices.items():
        value = config.get(key)
        if value is not None and value not in known:
            found.append(Problem(f"{source}: {key}", f"{value!r} is not supported", did_you_mean(str(value), known)))
    layers = whole(config, "num_layers")
    for key in _PATTERNS:
        value = config.get(key)
        if value is None:
            continue
        if not (isinstance(value, list) and all(entry in (0, 1) for entry in value)):
            found.append(Problem(f"{source}: {key}", f"{value!r} is not supported", "give a list with 0 or 1 a layer"))
        elif len(value) != layers:
            found.append(Problem(f"{source}: {key}", f"has {len(value)} entries for {layers} layers"))
    found += _expert_problems(config, source) if has_experts(config) else []
    if config.get("window_attn_skip_freq") is not None and _window(config) is None:
        found.append(Problem(f"{source}: window_size", "is absent, but window_attn_skip_freq is set"))
    return found


def _expert_problems(config: Mapping[str, object], source: str) -> list[Problem]:
    experts, chosen = whole(config, "num_moe_experts") or 1, config.get("moe_router_topk")
    found = [
        Problem(f"{source}: {key}", f"{config[key]!r} is not supported", f"supported: {values[0]!r}")
        for key, values in _EXPERT_SETTINGS.items()
        if config.get(key) not in values
    ]
    if chosen is not None and (isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= experts):
        found.append(Problem(f"{source}: moe_router_topk", f"{chosen!r} is not a number from 1 to {experts}"))
    if config.get("bias", True):
        found.append(Problem(f"{source}: bias", "is not supported with experts", "supported: False"))
    return found
