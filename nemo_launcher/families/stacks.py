# SPDX-License-Identifier: Apache-2.0
"""The stacks of layers that adapters go into, under the names NeMo's state dicts give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megatron.core.transformer.transformer_layer import TransformerLayer

from nemo_launcher.families.gpt.model import FrozenGPT
from nemo_launcher.families.gpt.shape import GPTShape, LayerShape
from nemo_launcher.families.t5.model import FrozenT5
from nemo_launcher.families.t5.shape import T5Shape


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers of one kind.

    name: of the stack in our model; path: of the layers in NeMo's state dicts of adapters; method_paths: of methods
    that have a path of their own there. layers: those of this pipeline stage; shape: of the whole stack.
    """

    name: str
    path: str
    layers: Iterable[TransformerLayer]
    shape: LayerShape
    method_paths: Mapping[str, str] = field(default_factory=dict)

    def path_for(self, method: str) -> str:
        """Return the path of the layers in the state dict of an adapter method."""
        return self.method_paths.get(method, self.path)


def is_t5_key(key: str) -> bool:
    """Return whether a key of an adapter's state dict names a layer of a T5 (`t5_stacks`)."""
    return key.startswith(("enc_dec_model.", "encoder:", "decoder:"))


def gpt_stacks(model: FrozenGPT, shape: GPTShape) -> list[Stack]:
    """Return the one stack of a GPT. Source of the path: NeMo 1.20, MegatronGPTBaseAdapterModel.state_dict."""
    return [Stack("decoder", "model.language_model.encoder.layers", model.decoder.layers, shape)]


def t5_stacks(model: FrozenT5, shape: T5Shape) -> list[Stack]:
    """Return encoder and decoder.

    Source of the paths: NeMo 1.20, MegatronT5BaseAdapterModel.state_dict and, for IA3, that of
    MegatronT5InfusedAdapterModel.
    """
    return [
        Stack(
            name,
            f"enc_dec_model.enc_dec_model.{name}.model.layers",
            () if getattr(model, name) is None else getattr(model, name).layers,
            getattr(shape, name),
            {"ia3": f"{name}:model.layers"},
        )
        for name in ("encoder", "decoder")
    ]
