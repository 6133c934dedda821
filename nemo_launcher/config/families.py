# SPDX-License-Identifier: Apache-2.0
"""The model families: one row each, read by the launcher, the conversion and the engine.

The first part of a choice such as `t5/squad` is a family's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyName:
    """What is known of a model family without its code."""

    title: str
    """What messages call its models."""
    engine: str
    """The folder of nemo_launcher/families with the code that runs them."""
    converter: str
    """The file of conf/conversion_hf2nemo that makes a base model of one."""
    architectures: Mapping[str, str]
    """The Hugging Face architectures that are converted -> the model_type of their configuration."""


FAMILIES: dict[str, FamilyName] = {
    "gpt3": FamilyName(
        title="Megatron GPT",
        engine="gpt",
        converter="hf_gpt",
        architectures={"GPT2LMHeadModel": "gpt2"},
    ),
    "llama": FamilyName(
        title="Llama",
        engine="gpt",
        converter="hf",
        architectures={"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"},
    ),
    "t5": FamilyName(
        title="Megatron T5",
        engine="t5",
        converter="hf_t5",
        architectures={"T5ForConditionalGeneration": "t5"},
    ),
}


def is_t5(config: Mapping[str, object]) -> bool:
    """Return whether a checkpoint's configuration is a T5's: by its sections, in older ones by the class it names."""
    sections = all(isinstance(config.get(name), Mapping) for name in ("encoder", "decoder"))
    return sections or str(config.get("target", "")).endswith("T5Model")


def engine_of(config: Mapping[str, object]) -> str:
    """Return the `engine` of the families that a base checkpoint with this configuration belongs to."""
    return "t5" if is_t5(config) else "gpt"
