# SPDX-License-Identifier: Apache-2.0
"""The shape of a GPT model, from a checkpoint's `model_config.yaml`.

The keys are those of NeMo 1.20 to 1.23 (examples/nlp/language_modeling/conf/megatron_gpt_config.yaml).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from nemo_launcher.checkpoint.outline import stack_sizes
from nemo_launcher.errors import UserError
from nemo_launcher.families.layer_shape import NORMALIZATIONS, Activation, activation, choose, unsupported
from nemo_launcher.files.values import Section, number, whole
from nemo_launcher.megatron import rotary, variation
from nemo_launcher.megatron.rotary import Rotary
from nemo_launcher.megatron.sizes import head_problems, size_problems
from nemo_launcher.megatron.variation import PLAIN, Variation

POSITION_EMBEDDINGS = {"learned_absolute": "learned_absolute", "rope": "rope", "alibi": "none"}


@dataclass(frozen=True, slots=True)
class GPTShape:
    """The shape of a GPT model, with the sizes of the complete model."""

    num_layers: int
    """The number of layers."""
    hidden_size: int
    """The width of the residual stream."""
    ffn_hidden_size: int
    """The width of the feed-forward."""
    num_attention_heads: int
    """The number of query heads."""
    num_query_groups: int
    """The number of key and value heads."""
    kv_channels: int
    """The dimension of a head."""
    vocab_size: int
    """The number of stored embedding rows, including padding."""
    max_position_embeddings: int
    """The maximum number of tokens in a text; the rows of a learned position table."""
    encoder_seq_length: int
    """The maximum number of tokens in a training sample."""
    activation: str
    """The activation's name in NeMo's configuration."""
    activation_function: Activation
    """The activation function."""
    gated: bool
    """Whether the first feed-forward matrix is [gate | up]."""
    normalization: str
    """Megatron-core's name of the norm."""
    layernorm_epsilon: float
    """The norm's epsilon, added to the variance."""
    bias: bool
    """Whether linear layers have a bias."""
    qkv_bias: bool
    """Whether the QKV projection has a bias."""
    position_embedding_type: str
    """Megatron-core's name: `rope`, `learned_absolute`, or `none` where attention has the positions (ALiBi)."""
    rotary: Rotary
    """The settings of rotary positions."""
    share_embeddings_and_output_weights: bool
    """Whether the head shares the token embedding."""
    variation: Variation = PLAIN
    """What the layers compute beyond a Llama's."""

    @classmethod
    def from_config(cls, config: Section, *, vocab_size: int, source: str) -> GPTShape:
        """Return the shape in the `model_config.yaml` of a base checkpoint.

        source: the archive's name, for messages. Raises UserError with all keys that are missing or not supported.
        """
        problems = size_problems(config, source)
        chosen, found = choose(config, POSITION_EMBEDDINGS, source)
        problems += [*found, *unsupported(config, _FIXED, source), *rotary.problems(config, source)]
        problems += variation.problems(config, source)
        problems = problems or head_problems(config, source)
        if problems:
            raise UserError(problems)

        function, gated = activation(chosen["activation"], config)
        bias = bool(config.get("bias", True))
        seq_length = whole(config, "encoder_seq_length") or whole(config, "max_position_embeddings") or 0
        window = _window(config) if config.get("window_attn_skip_freq") is None else None
        return cls(
            **(_sizes(config) | {"gated": gated}),
            vocab_size=vocab_size,
            max_position_embeddings=whole(config, "max_position_embeddings") or seq_length,
            encoder_seq_length=min(seq_length, window or seq_length),
            activation=chosen["activation"],
            activation_function=function,
            normalization=NORMALIZATIONS[chosen["normalization"]],
            layernorm_epsilon=number(config, "layernorm_epsilon") or 1e-5,
            bias=bias,
            qkv_bias=bool(config.get("qkv_bias", False)) or bias,
            position_embedding_type=POSITION_EMBEDDINGS[chosen["position_embedding_type"]],
            rotary=Rotary.from_config(config),
            share_embeddings_and_output_weights=bool(config.get("share_embeddings_and_output_weights", True)),
            variation=Variation.from_config(config),
        )


def _sizes(config: Section) -> dict[str, Any]:
    """Return the sizes of the layers; experts are part of the variation."""
    return {name: size for name, size in asdict(stack_sizes(config)).items() if not name.startswith("experts")}


def _window(config: Section) -> int | None:
    """Return the length of a window in all layers, up to which attention is not limited; None without one."""
    window = config.get("window_size")  # [before, after], -1: unlimited
    tokens = window[0] if isinstance(window, list) and window else window
    return tokens if isinstance(tokens, int) and tokens > 0 else None


# Options of NeMo's GPT that change its computation and are not implemented: only these values are valid.
_FIXED: dict[str, tuple[object, ...]] = {
    "transformer_block_type": ("pre_ln", None),
    "apply_query_key_layer_scaling": (False, True, None),
    "headscale": (False, None),
    "normalize_attention_scores": (True, None),
}
