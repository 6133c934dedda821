# SPDX-License-Identifier: Apache-2.0
"""The layouts of Hugging Face in which a GPT can be written: that of its source, or else Llama, Qwen2 and GPT-2."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nemo_launcher.checkpoint.architectures.architecture import Architecture
from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.checkpoint.hf_architectures import config_problems, model_type
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.hf_tables import table_of
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.hf_classes import model_class, num_experts, read_configuration
from nemo_launcher.families.hf_layout import HuggingFaceLayout
from nemo_launcher.files.values import Section, below
from nemo_launcher.megatron.rotary import Rotary

_TASK = "CAUSAL_LM"
"""PEFT's name of what a GPT does."""


def _llama_configuration(shape: GPTShape) -> dict[str, object]:
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.kv_channels,
        "hidden_act": "silu",
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.layernorm_epsilon,
        "rope_parameters": _rope(shape.rotary),
        "tie_word_embeddings": shape.share_embeddings_and_output_weights,
    }


def _rope(rotary: Rotary) -> dict[str, object]:
    """Return transformers' settings of rotary positions; older versions read `rope_type` as `default`."""
    if rotary.scaling is not None:
        return {
            "rope_type": "llama3",
            "rope_theta": rotary.base,
            "factor": rotary.scaling.scale_factor,
            "low_freq_factor": rotary.scaling.low_freq_factor,
            "high_freq_factor": rotary.scaling.high_freq_factor,
            "original_max_position_embeddings": int(rotary.scaling.old_context_len),
        }
    if rotary.interpolation_factor != 1:
        return {"rope_type": "linear", "rope_theta": rotary.base, "factor": rotary.interpolation_factor}
    return {"rope_type": "default", "rope_theta": rotary.base}


def _gpt2_configuration(shape: GPTShape) -> dict[str, object]:
    return {
        "n_embd": shape.hidden_size,
        "n_inner": shape.ffn_hidden_size,
        "n_layer": shape.num_layers,
        "n_head": shape.num_attention_heads,
        "n_positions": shape.max_position_embeddings,
        "activation_function": "gelu_new",
        "vocab_size": shape.vocab_size,
        "layer_norm_epsilon": shape.layernorm_epsilon,
        "tie_word_embeddings": shape.share_embeddings_and_output_weights,
    }


def _everything(name: str) -> bool:
    return True


def _layout(kind: str, configuration: Callable[[GPTShape], dict[str, object]]) -> HuggingFaceLayout[GPTShape]:
    architecture = KINDS[kind]
    return HuggingFaceLayout(
        kind=kind,
        architecture=architecture.name,
        task=_TASK,
        table=lambda shape: table_of(architecture, _everything),
        configuration=configuration,
    )


LAYOUTS = (
    _layout("llama", _llama_configuration),
    _layout("qwen2", _llama_configuration),
    _layout("gpt2", _gpt2_configuration),
)
"""Those of a GPT of any origin, in the order in which they are tried."""


def source_layout(config: Section, source: str) -> HuggingFaceLayout[GPTShape] | None:
    """Return the layout of the model that a base was converted from, or None if its configuration is not stored.

    config: of the archive; source: the archive's name, for messages. Raises UserError for an invalid configuration.
    """
    stored = below(below(config, "converted_from"), "configuration")
    if not stored:
        return None
    problems = config_problems(stored, f"{source}: converted_from")
    if problems:
        raise UserError(problems)
    architecture = KINDS[model_type(stored)]
    names = _names(architecture, stored, source)
    return HuggingFaceLayout(
        kind=architecture.kind,
        architecture=architecture.name,
        task=_TASK,
        table=lambda shape: table_of(architecture, names.__contains__),
        configuration=lambda shape: {**stored, "vocab_size": shape.vocab_size},
        zero_centered=True,
        known=frozenset(names),
        file_names=architecture.other_names,
    )


def _names(architecture: Architecture, configuration: Section, source: str) -> set[str]:
    """Return the names of a model's weights."""
    complete = {**configuration, "pad_token_id": None}  # some defaults are beyond a small vocabulary
    with torch.device("meta"):
        config = read_configuration(architecture.name, complete, source)
        created = model_class(architecture.name, source)(config)
    return architecture.names_in_files(created.state_dict(), num_experts(config))
