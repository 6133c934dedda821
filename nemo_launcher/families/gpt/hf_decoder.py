# SPDX-License-Identifier: Apache-2.0
"""Conversion of a declared Hugging Face decoder (checkpoint.architectures) to a NeMo GPT checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Layout, Settings, Source
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.families.gpt.layouts import to_mcore_name
from nemo_launcher.files.values import Section, whole

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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

    def convert_weights(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return the weights under our names (families.gpt.layouts) in Megatron-core's layout.

        Biases of zeros are added where our layers have one and the architecture has none.
        """
        settings = self.nemo_config(config, weights)
        result: dict[str, Tensor] = {}
        for ours, source in self._modules(settings):
            found = _present(source, weights)
            if found is None:
                continue
            is_shared = ours == "output_layer" and settings["share_embeddings_and_output_weights"]
            for ending in ("bias",) if is_shared else ("weight", "bias"):
                names = [f"{name}.{ending}" for name in found.names]
                if all(name in weights for name in names):
                    result[f"{ours}.{ending}"] = _formed([weights[name] for name in names], found.layout, settings)
        return result | dict(_missing_biases(result, settings))

    def to_stored(self, weights: Mapping[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
        """Return our weights under the names that NeMo 1.23 stores."""
        return {to_mcore_name(name): weight for name, weight in weights.items()}

    def tokenizer_section(self, vocab: Iterable[str]) -> dict[str, object]:
        """Return nothing: the common `tokenizer` section suffices."""
        return {}

    def _modules(self, settings: Section) -> Iterator[tuple[str, Source]]:
        """Yield our modules with their sources, with the number of each layer."""
        for ours, source in self.architecture.weights.items():
            if "*" not in ours:
                yield ours, source
                continue
            for layer in map(str, range(whole(settings, "num_layers") or 0)):
                yield ours.replace("*", layer), _of_layer(source, layer)


def _of_layer(source: Source, layer: str) -> Source:
    names = tuple(name.replace("*", layer) for name in source.names)
    return Source(names, source.layout, None if source.otherwise is None else _of_layer(source.otherwise, layer))


def _present(source: Source | None, weights: Mapping[str, Tensor]) -> Source | None:
    """Return the first of the alternative sources that a model has."""
    while source is not None and any(f"{name}.weight" not in weights for name in source.names):
        source = source.otherwise
    return source


def _complete(config: PretrainedConfig) -> Section:
    """Return a configuration with the defaults of transformers, and T5's names for GPT-2's keys."""
    complete: dict[str, object] = config.to_dict()
    return complete


def _formed(parts: Sequence[Tensor], layout: Layout, settings: Section) -> Tensor:
    """Return our weight or bias from those of the architecture."""
    if layout is Layout.STACKED:
        return torch.cat(tuple(parts))
    if layout is Layout.QKV:
        return _by_group(parts, settings)
    (tensor,) = parts
    if layout is Layout.WITHOUT_TWO_ROWS:
        return tensor[2:]
    if layout in (Layout.TRANSPOSED, Layout.QKV_COLUMNS):
        tensor = tensor.t() if tensor.dim() == 2 else tensor
    if layout in (Layout.QKV_ROWS, Layout.QKV_COLUMNS):
        return _by_group(tensor.split(_qkv_rows(settings)), settings)
    return tensor


def _by_group(parts: Sequence[Tensor], settings: Section) -> Tensor:
    """Return queries, keys and values, each [heads * head_dim, ...], in the order of Layout.QKV."""
    groups = _groups(settings)
    together = torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in parts], dim=1)
    return together.flatten(0, 1)


def _groups(settings: Section) -> int:
    return whole(settings, "num_query_groups") or whole(settings, "num_attention_heads") or 1


def _qkv_rows(settings: Section) -> list[int]:
    """Return the numbers of rows of queries, keys and values."""
    heads = whole(settings, "num_attention_heads") or 1
    size = whole(settings, "kv_channels") or (whole(settings, "hidden_size") or 0) // heads
    return [heads * size, _groups(settings) * size, _groups(settings) * size]


def _missing_biases(weights: Mapping[str, Tensor], settings: Section) -> Iterator[tuple[str, Tensor]]:
    """Yield zeros for the biases that our layers have beyond those converted."""
    biased = _LINEAR if settings.get("bias") else ("linear_qkv",) if settings.get("qkv_bias") else ()
    if str(settings["normalization"]).startswith("layernorm"):
        biased = (*biased, "layernorm")
    for name, weight in weights.items():
        module, _, ending = name.rpartition(".")
        if ending == "weight" and module.endswith(tuple(biased)) and f"{module}.bias" not in weights:
            yield f"{module}.bias", weight.new_zeros(weight.size(0))


DECODERS = {
    architecture.kind: Decoder(architecture)
    for architecture in ARCHITECTURES.values()
    if architecture.settings is not None
}
"""The converters by model_type."""
