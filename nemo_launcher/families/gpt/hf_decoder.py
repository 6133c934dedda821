# SPDX-License-Identifier: Apache-2.0
"""Conversion of a declared Hugging Face decoder (checkpoint.architectures) to a NeMo GPT checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.checkpoint.outline import stack_sizes
from nemo_launcher.families.gpt.hf_tables import table_of
from nemo_launcher.families.gpt.layouts import to_mcore_name
from nemo_launcher.files.values import Section

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEAD = "output_layer"
_LINEAR = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@dataclass(frozen=True, slots=True)
class Decoder:
    """The converter of one architecture (families.family.HuggingFaceModel)."""

    architecture: Architecture
    """Its declaration."""

    @property
    def TARGET(self) -> str:
        """NeMo's class in the base's configuration."""
        return "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"

    def nemo_config(self, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Settings:
        """Return the model's part of `model_config.yaml`; the weights are not needed."""
        assert self.architecture.settings is not None
        settings = self.architecture.settings(_complete(config))
        return {key: value for key, value in settings.items() if value is not None}

    def convert_weights(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights under our names (families.gpt.layouts) in Megatron-core's layout.

        Biases of zeros are added where our layers have one and the architecture has none.
        """
        settings = self.nemo_config(config, weights)
        is_tied = bool(settings["share_embeddings_and_output_weights"])
        biased = _biased(settings)
        for entry in table_of(self.architecture, weights.__contains__).entries({"decoder": stack_sizes(settings)}):
            own = ("bias",) if is_tied and entry.ours == _HEAD else ("weight", "bias")
            endings = [end for end in own if all(f"{name}.{end}" in weights for name in entry.theirs)]
            for ending in endings:
                weight = entry.module.join([weights[f"{name}.{ending}"] for name in entry.theirs], entry.sizes)
                yield f"{entry.ours}.{ending}", weight
            if endings == ["weight"] and entry.ours.endswith(biased):
                yield f"{entry.ours}.bias", weight.new_zeros(weight.size(0))

    def to_stored(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return our weights under the names that NeMo 1.23 stores."""
        return {to_mcore_name(name): weight for name, weight in weights.items()}

    def tokenizer_section(self, vocab: Iterable[str]) -> dict[str, object]:
        """Return nothing: the common `tokenizer` section suffices."""
        return {}


def _complete(config: PretrainedConfig) -> Section:
    """Return a configuration with the defaults of transformers."""
    complete: dict[str, object] = config.to_dict()
    return complete


def _biased(settings: Section) -> tuple[str, ...]:
    """Return the ends of the names of modules that have a bias in our layers."""
    biased = _LINEAR if settings.get("bias") else ("linear_qkv",) if settings.get("qkv_bias") else ()
    return (*biased, "layernorm") if str(settings["normalization"]).startswith("layernorm") else biased


DECODERS = {
    architecture.kind: Decoder(architecture)
    for architecture in ARCHITECTURES.values()
    if architecture.settings is not None
}
"""The converters by model_type."""
