# SPDX-License-Identifier: Apache-2.0
"""The shapes of a T5's encoder and decoder, from a checkpoint's `model_config.yaml`.

The keys are those of NeMo 1.20 to 1.23 (examples/nlp/language_modeling/conf/megatron_t5_config.yaml): a section each
for `encoder` and `decoder` or, in older checkpoints, the same keys at the top level for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_launcher.checkpoint.outline import stack_sizes
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.layer_shape import (
    NORMALIZATIONS,
    Activation,
    activation,
    choose,
    transformer_config,
    unsupported,
)
from nemo_launcher.families.layer_shape import is_gated as activation_is_gated
from nemo_launcher.files.values import Section, below, number, whole
from nemo_launcher.megatron.sizes import ParallelSizes, head_problems, size_problems
from nemo_launcher.megatron.variation import VARYING_KEYS

RELATIVE, RELATIVE_PER_LAYER = "relative", "relative_per_layer"
"""One table of relative positions for all layers of a stack, or one for each, which NeMo does not have."""
POSITION_EMBEDDINGS = {name: name for name in ("learned_absolute", RELATIVE, RELATIVE_PER_LAYER)}

# Options that change the computation and are not implemented: only these values are valid.
_FIXED: dict[str, tuple[object, ...]] = {
    "arch": ("transformer", None),
    "transformer_block_type": ("pre_ln", None),
    "headscale": (False, None),
    "megatron_legacy": (False, None),
    "num_moe_experts": (1, None),
    "num_self_attention_per_cross_attention": (1, None),
    # settings of GPT's families (megatron.variation), which would change the results
    **dict.fromkeys(VARYING_KEYS, (None,)),
    **dict.fromkeys(("qk_layernorm", "parallel_attention", "apply_embedding_scaling"), (False, None)),
}


@dataclass(frozen=True, slots=True)
class StackShape:
    """One stack of layers, encoder or decoder, with the sizes of the complete model."""

    num_layers: int
    """The number of layers."""
    hidden_size: int
    """The width of the residual stream."""
    ffn_hidden_size: int
    """The width of the feed-forward."""
    num_attention_heads: int
    """The number of heads."""
    kv_channels: int
    """The dimension of a head."""
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
    position_embedding_type: str
    """`relative` or `learned_absolute`, as in Megatron-core, or `relative_per_layer`."""
    relative_attention_num_buckets: int
    """The number of buckets of relative positions."""
    relative_attention_max_distance: int
    """The distance, in tokens, from which all positions share a bucket."""
    normalize_attention_scores: bool
    """Whether scores are multiplied by 1 / sqrt(head_dim); not in the original T5."""
    apply_query_key_layer_scaling: bool
    """Whether relative-position bias and unnormalized scores are multiplied by the layer's number.

    See families.t5.attention.BlockAttention.
    """

    @property
    def num_query_groups(self) -> int:
        """The number of key and value heads, one for each query head."""
        return self.num_attention_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether the QKV projection has a bias, like all projections."""
        return self.bias


@dataclass(frozen=True, slots=True)
class T5Shape:
    """The shape of a T5 model."""

    encoder: StackShape
    """The encoder's shape."""
    decoder: StackShape
    """The decoder's shape."""
    vocab_size: int
    """The number of stored embedding rows, including padding."""
    max_position_embeddings: int
    """The maximum number of encoder tokens; the rows of a learned position table."""
    cross_attention_bias: bool
    """Whether cross-attention also has relative positions.

    That is, relative_position_bias_self_attention_only is False.
    """
    share_token_embeddings: bool
    """Whether encoder and decoder share the token embedding."""
    head_is_tied: bool
    """Whether the head shares the decoder's token embedding."""
    head_bias: bool
    """Whether the head has a bias."""

    @property
    def hidden_size(self) -> int:
        """The width of both stacks."""
        return self.encoder.hidden_size

    @property
    def encoder_seq_length(self) -> int:
        """The maximum number of tokens in a prompt."""
        return self.max_position_embeddings

    @property
    def decoder_seq_length(self) -> int | None:
        """The maximum number of decoder tokens; None for relative positions, which have no limit."""
        learned = self.decoder.position_embedding_type == "learned_absolute"
        return self.max_position_embeddings if learned else None

    @classmethod
    def from_config(cls, config: Section, *, vocab_size: int, source: str) -> T5Shape:
        """Return the shape in the `model_config.yaml` of a base checkpoint.

        source: the archive's name, for messages. Raises UserError with all keys that are missing or not supported.
        """
        sections = {name: {**config, **below(config, name)} for name in ("encoder", "decoder")}
        problems = [found for name in sections for found in _section_problems(sections[name], f"{source}: {name}")]
        positions = whole(config, "max_position_embeddings") or whole(config, "seq_length")
        if not positions:
            problems.append(
                Problem(f"{source}: max_position_embeddings", "is absent from the base's model_config.yaml")
            )
        if not problems and sections["encoder"]["hidden_size"] != sections["decoder"]["hidden_size"]:
            problems.append(Problem(f"{source}: hidden_size", "differs between encoder and decoder"))
        if is_gated(config) != activation_is_gated(sections["decoder"]):
            problems.append(Problem(f"{source}: activation", "is gated in only one of the stacks"))
        if problems:
            raise UserError(problems)
        decoder = sections["decoder"]
        relative = decoder.get("position_embedding_type") == RELATIVE
        return cls(
            encoder=_stack(sections["encoder"], source),
            decoder=_stack(decoder, source),
            vocab_size=vocab_size,
            max_position_embeddings=positions or 0,
            cross_attention_bias=relative and not decoder.get("relative_position_bias_self_attention_only", True),
            share_token_embeddings=bool(config.get("share_token_embeddings", True)),
            head_is_tied=bool(config.get("share_decoder_tokens_head_embeddings", True)),
            head_bias=bool(config.get("tokens_head_bias", True)),
        )


def is_gated(config: Section) -> bool:
    """Return whether the stacks' activation is a gated linear unit."""
    return activation_is_gated({**config, **below(config, "encoder")})


def _section_problems(section: Section, source: str) -> list[Problem]:
    problems = [
        *size_problems(section, source),
        *choose(section, POSITION_EMBEDDINGS, source)[1],
        *unsupported(section, _FIXED, source),
    ]
    return problems or head_problems(section, source)


def _stack(section: Section, source: str) -> StackShape:
    chosen, _ = choose(section, POSITION_EMBEDDINGS, source)
    function, gated = activation(chosen["activation"], section)
    sizes = stack_sizes(section)
    return StackShape(
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        ffn_hidden_size=sizes.ffn_hidden_size,
        num_attention_heads=sizes.num_attention_heads,
        kv_channels=sizes.kv_channels,
        activation_function=function,
        gated=gated,
        normalization=NORMALIZATIONS[chosen["normalization"]],
        layernorm_epsilon=number(section, "layernorm_epsilon") or 1e-5,
        bias=bool(section.get("bias", True)),
        position_embedding_type=chosen["position_embedding_type"],
        relative_attention_num_buckets=whole(section, "relative_attention_num_buckets") or 32,
        relative_attention_max_distance=whole(section, "relative_attention_max_distance") or 128,
        normalize_attention_scores=section.get("normalize_attention_scores") is not False,
        apply_query_key_layer_scaling=section.get("apply_query_key_layer_scaling") is not False,
    )


def stack_config(shape: StackShape, *, dtype: torch.dtype, sizes: ParallelSizes) -> TransformerConfig:
    """Return the Megatron-core configuration of one stack; sizes.pipeline: its own stages."""
    config = transformer_config(shape, dtype=dtype, sizes=sizes)
    # Set afterwards: TransformerConfig would require an fp32 softmax, which this attention always uses.
    config.apply_query_key_layer_scaling = shape.apply_query_key_layer_scaling
    if not shape.normalize_attention_scores:
        config.softmax_scale = 1.0
    return config
