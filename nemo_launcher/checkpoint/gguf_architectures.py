# SPDX-License-Identifier: Apache-2.0
"""The architectures of GGUF files, each declared by a table: its keys and tensors, under Hugging Face's names.

Sources: llama.cpp, gguf-py/gguf/constants.py (keys and tensor names), convert_hf_to_gguf.py (what its converter writes)
and src/llama-model.cpp (values that a file lacks). Imports no torch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nemo_launcher.checkpoint.gguf_attention import gemma2_attention, gemma3_attention, phi3_attention
from nemo_launcher.checkpoint.gguf_file import GGUFKeys
from nemo_launcher.checkpoint.gguf_rope import FREQUENCIES, LONG, SHORT, layered_rope, partial_rope, whole_rope


class Form(enum.Enum):
    """How llama.cpp's converter changes a tensor."""

    SAME = enum.auto()
    """Not at all."""
    TRANSPOSED = enum.auto()
    """[out, in] instead of [in, out]."""
    PAIRS = enum.auto()
    """The two rotated dimensions of a pair are neighbours (LlamaModel.permute)."""
    PLUS_ONE = enum.auto()
    """1 is added, as a zero-centered norm does when it is computed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs."""

    name: str
    """Hugging Face's name without `.weight` and `.bias`; {} stands for the number of the layer."""
    form: Form = Form.SAME
    """How it was changed."""


Places = dict[str, Place]
"""llama.cpp's name of a tensor -> its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFArchitecture:
    """An architecture of GGUF files. Keys are without the architecture's name at their beginning."""

    name: str
    """Hugging Face's architecture."""
    tensors: Places
    """Its tensors."""
    keys: Mapping[str, str]
    """Keys of the file -> keys of config.json."""
    required: tuple[str, ...]
    """Keys without a default that every reader agrees on."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of keys that older files lack."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Keys of config.json that are true if the file has a tensor."""
    rope: Callable[[GGUFKeys, int], dict[str, object]] | None = None
    """Returns `rope_parameters` for a size of heads. Raises UserError; None: learned positions."""
    factors: tuple[str, ...] = ()
    """Tensors that `rope` reads."""
    attention: Callable[[GGUFKeys, int], dict[str, object]] | None = None
    """Returns further keys of config.json, of windows and scales, for a size of heads. Raises UserError."""
    others: tuple[str, ...] = ()
    """Further keys that `rope` and `attention` read."""

    @property
    def known(self) -> frozenset[str]:
        """All keys that are read or that change nothing."""
        return frozenset((*self.keys, *self.others, *_CHECKED, *(_ROTARY if self.rope else ())))


_CHECKED = ("vocab_size", "tensor_data_layout", "attention.causal")
"""Keys of any architecture that are checked elsewhere, or have no effect."""
_ROTARY = (
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length"),
    *("rope.scaling.finetuned", "rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier"),
)
_EPSILON = "attention.layer_norm_rms_epsilon"
_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    _EPSILON: "rms_norm_eps",
}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_WINDOW = "attention.sliding_window"

_LAYER = "model.layers.{}."
_HEAD: Places = {"output": Place("lm_head")}
_OUTSIDE: Places = {"token_embd": Place("model.embed_tokens"), "output_norm": Place("model.norm")}
_ATTENTION: Places = {f"attn_{name}": Place(f"{_LAYER}self_attn.{name}_proj") for name in "qkv"}
_OUT: Places = {
    "attn_output": Place(f"{_LAYER}self_attn.o_proj"),
    "ffn_down": Place(f"{_LAYER}mlp.down_proj"),
}
_GATED: Places = _OUT | {f"ffn_{name}": Place(f"{_LAYER}mlp.{name}_proj") for name in ("gate", "up")}
_NORMS: Places = {
    "attn_norm": Place(f"{_LAYER}input_layernorm"),
    "ffn_norm": Place(f"{_LAYER}post_attention_layernorm"),
}
_HEAD_NORMS: Places = {f"attn_{name}_norm": Place(f"{_LAYER}self_attn.{name}_norm") for name in "qk"}
_QWEN: Places = _OUTSIDE | _HEAD | _ATTENTION | _GATED | _NORMS


def _zero_centered(norms: Mapping[str, str]) -> Places:
    return {name: Place(theirs, Form.PLUS_ONE) for name, theirs in norms.items()}


_GEMMA: Places = (
    _OUTSIDE
    | _ATTENTION
    | _GATED
    | _zero_centered(
        {
            "output_norm": "model.norm",
            "attn_norm": f"{_LAYER}input_layernorm",
            "post_attention_norm": f"{_LAYER}post_attention_layernorm",
            "ffn_norm": f"{_LAYER}pre_feedforward_layernorm",
            "post_ffw_norm": f"{_LAYER}post_feedforward_layernorm",
        }
    )
)
_BLOCK = "transformer.h.{}."
_GPT2: Places = {
    "token_embd": Place("transformer.wte"),
    "position_embd": Place("transformer.wpe"),
    "output_norm": Place("transformer.ln_f"),
    "output": Place("lm_head"),
    "attn_norm": Place(f"{_BLOCK}ln_1"),
    "attn_qkv": Place(f"{_BLOCK}attn.c_attn", Form.TRANSPOSED),
    "attn_output": Place(f"{_BLOCK}attn.c_proj", Form.TRANSPOSED),
    "ffn_norm": Place(f"{_BLOCK}ln_2"),
    "ffn_up": Place(f"{_BLOCK}mlp.c_fc", Form.TRANSPOSED),
    "ffn_down": Place(f"{_BLOCK}mlp.c_proj", Form.TRANSPOSED),
}

GGUF_ARCHITECTURES: dict[str, GGUFArchitecture] = {
    "llama": GGUFArchitecture(
        name="LlamaForCausalLM",
        tensors=_QWEN | {name: Place(_ATTENTION[name].name, Form.PAIRS) for name in ("attn_q", "attn_k")},
        keys=_SIZES,
        required=(_EPSILON,),
        flags={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
        rope=whole_rope,
        factors=(FREQUENCIES,),
    ),
    "qwen2": GGUFArchitecture(
        name="Qwen2ForCausalLM", tensors=_QWEN, keys=_SIZES, required=(_EPSILON,), rope=whole_rope
    ),
    "qwen3": GGUFArchitecture(
        name="Qwen3ForCausalLM",
        tensors=_QWEN | _HEAD_NORMS,
        keys=_SIZES,
        required=(_EPSILON, "attention.key_length"),
        rope=whole_rope,
    ),
    "gemma2": GGUFArchitecture(
        name="Gemma2ForCausalLM",
        tensors=_GEMMA,
        keys=_SIZES | _CAPS,
        required=(_EPSILON, "attention.key_length"),
        defaults={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        rope=whole_rope,
        attention=gemma2_attention,
        others=(_WINDOW,),
    ),
    "gemma3": GGUFArchitecture(
        name="Gemma3ForCausalLM",
        tensors=_GEMMA | _HEAD | _zero_centered({name: place.name for name, place in _HEAD_NORMS.items()}),
        keys=_SIZES | {"final_logit_softcapping": "final_logit_softcapping"},
        required=(_EPSILON, "attention.key_length", "rope.freq_base"),
        rope=layered_rope,
        attention=gemma3_attention,
        others=(_WINDOW, "attention.sliding_window_pattern", "rope.freq_base_swa"),
    ),
    "phi3": GGUFArchitecture(
        name="Phi3ForCausalLM",
        tensors=_OUTSIDE
        | _HEAD
        | _OUT
        | _NORMS
        | {"attn_qkv": Place(f"{_LAYER}self_attn.qkv_proj"), "ffn_up": Place(f"{_LAYER}mlp.gate_up_proj")},
        keys=_SIZES | {"rope.scaling.original_context_length": "original_max_position_embeddings"},
        required=(_EPSILON, _WINDOW),
        rope=partial_rope,
        factors=(LONG, SHORT),
        attention=phi3_attention,
        others=(_WINDOW,),
    ),
    "gpt2": GGUFArchitecture(
        name="GPT2LMHeadModel",
        tensors=_GPT2,
        keys={
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        required=("attention.layer_norm_epsilon",),
    ),
}
"""The architectures by general.architecture."""
