# SPDX-License-Identifier: Apache-2.0
"""A base and its source with a single layer per stack, whose weights are replaced: one layer of each is in memory.

Of the embedding and the head, only the rows in use are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.hf_architectures import architecture_of
from nemo_launcher.checkpoint.norms import norm_weight
from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.conversion.source import Source
from nemo_launcher.families.gpt.model import vary
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.hf_classes import model_class, num_experts
from nemo_launcher.families.registry import family_of_checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class WrittenModel:
    """The written base model with a single layer per stack, whose weights are replaced."""

    def __init__(self, archive: Archive) -> None:
        self.config = archive.config()
        family = family_of_checkpoint(self.config)
        renaming, gated = family.renaming(self.config), family.is_gated(self.config)
        self.weights = StoredWeights(archive, renaming, gated=gated)
        rows = self.weights.rows(family.embedding)
        self.shape = family.read_shape(self.config, vocab_size=rows, source=str(archive.path))
        if hasattr(self.shape, "encoder"):
            stacks = {name: replace(getattr(self.shape, name), num_layers=1) for name in ("encoder", "decoder")}
            one_layer = replace(self.shape, **stacks)
        else:
            assert isinstance(self.shape, GPTShape)
            one_layer = replace(self.shape, num_layers=1, variation=self.shape.variation.of_layer(0))
        self.model = family.build(one_layer, dtype=torch.float32)
        self.parameters = [name for name, _ in self.model.named_parameters()]
        self._embedding = self._stored_name(family.embedding)
        outside = [name for name in self.parameters if ".layers." not in name and not name.endswith(_TABLES)]
        self._load({name: self._stored_name(name) for name in outside})

    def use_tokens(self, ids: Tensor) -> None:
        """Keep only these rows of the embeddings; ids: [n]. Token 0 is then ids[0], and so on."""
        for name in self.parameters:
            if name.endswith(_EMBEDDING):
                _set(self.model, name, self.weights.read(self._stored_name(name))[ids].float())
        self.weights.release()

    def head_rows(self, rows: slice) -> Tensor:
        """Return these rows of the head, [n, hidden], and give its bias the same rows."""
        name, bias = "output_layer.weight", "output_layer.bias"
        if bias in self.parameters:
            _set(self.model, bias, self.weights.read(self._stored_name(bias))[rows].float())
        return self.weights.read(self._stored_name(name) if name in self.parameters else self._embedding)[rows].float()

    def use_layer(self, stack: str, number: int) -> nn.Module:
        """Load the weights of layer `number` into the single layer of a stack; return it."""
        first = f"{stack}.layers.0."
        if isinstance(self.shape, GPTShape):
            vary(self.model.decoder.layers[0], self.shape, number)
        self._load(
            {name: name.replace(first, f"{stack}.layers.{number}.") for name in self.parameters if first in name}
        )
        layer: nn.Module = getattr(self.model, stack).layers[0]
        return layer

    def _stored_name(self, name: str) -> str:
        return str(self.model.names_in_checkpoint.get(name, name))

    def _load(self, names: Mapping[str, str]) -> None:
        state = {n: norm_weight(self.weights.read(stored), stored, self.config).float() for n, stored in names.items()}
        self.model.load_state_dict(state, strict=False, assign=True)
        self.weights.release()


class SourceModel:
    """The source in transformers with a single layer per stack, whose weights are replaced."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self._dtype = source, dtype
        self.config = copy.deepcopy(source.config)
        for key in ("num_hidden_layers", "num_decoder_layers"):
            if hasattr(self.config, key):
                setattr(self.config, key, 1)
        # Its eager attention adds Falcon's biases by ALiBi twice (transformers 5.23, FalconModel.forward).
        self.config._attn_implementation = "sdpa" if getattr(self.config, "alibi", False) else "eager"
        vars(self.config).pop("quantization_config", None)
        self._class = model_class(architecture_of(source.origin.config), str(source.path))
        self._tokens: Tensor | None = None
        self._kinds = {name: list(kinds) for name in _BY_LAYER if (kinds := getattr(source.config, name, None))}
        self._build(0)

    def _build(self, number: int) -> None:
        """Create the model whose single layer is of the kind of layer `number`."""
        self._kind = self._kind_of(number)
        for name, value in self._kind.items():
            setattr(self.config, name, [value])
        with torch.device("meta"):
            self.model = self._class(self.config).eval()
        for module in list(self.model.modules()):
            for name, child in list(module.named_children()):
                if any(tensor.is_meta for tensor in _tensors(child)):
                    setattr(module, name, _with_buffers(child, self.config))
        self._all = list(self.model.state_dict())
        names = {id(module): name for name, module in self.model.named_modules()}
        self._embedding = names[id(self.model.get_input_embeddings())]
        self._head = names[id(self.model.get_output_embeddings())]
        tables = (f"{self._embedding}.weight", f"{self._head}.weight", f"{self._head}.bias", *_COPIES)
        self._load({name: name for name in self._all if not _is_in_layer(name) and name not in tables})
        if self._tokens is not None:
            self.use_tokens(self._tokens)

    def use_tokens(self, ids: Tensor) -> None:
        """Keep only these rows of the embedding; ids: [n]. Token 0 is then ids[0], and so on."""
        self._tokens = ids
        self._set(f"{self._embedding}.weight", ids)

    def use_head(self, rows: slice) -> None:
        """Keep only these rows of the head."""
        for name in (f"{self._head}.weight", f"{self._head}.bias"):
            if name in self._all:
                self._set(name, rows)

    def _set(self, name: str, rows: Tensor | slice) -> None:
        _set(self.model, name, self.source.tensors[name][rows].to(self._dtype).float())

    def _kind_of(self, number: int) -> dict[str, object]:
        return {name: kinds[number] for name, kinds in self._kinds.items()}

    def use_layer(self, prefix: str, number: int) -> nn.Module:
        """Load the weights of layer `number` into the single layer below `prefix`; return it."""
        if self._kind_of(number) != self._kind:
            self._build(number)
        first = f"{prefix}.0."
        names = {name: name.replace(first, f"{prefix}.{number}.", 1) for name in self._all if name.startswith(first)}
        self._load({name: theirs for name, theirs in names.items() if self._has(theirs)})
        layer: nn.Module = self.model.get_submodule(f"{prefix}.0")
        return layer

    def _load(self, names: Mapping[str, str]) -> None:
        state = {name: self._read(theirs) for name, theirs in names.items()}
        self.model.load_state_dict(state, strict=False, assign=True)

    def _parts(self, name: str) -> list[list[str]]:
        """Return the tensors of a weight of the model, which joins those of experts."""
        experts = KINDS[self.source.kind].experts
        return [[name]] if experts is None else experts.stored_names(name, num_experts(self.config))

    def _has(self, name: str) -> bool:
        return self._parts(name)[0][0] in self.source.tensors

    def _read(self, name: str) -> Tensor:
        parts = [torch.cat([self.source.tensors[n] for n in several]) for several in self._parts(name)]
        return (parts[0] if len(parts) == 1 else torch.stack(parts)).to(self._dtype).float()


_EMBEDDING = "word_embeddings.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""T5's other names of its embedding, which a comparison of layers does not use."""
_TABLES = (_EMBEDDING, "output_layer.weight", "output_layer.bias")


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter by one of any shape."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))


_BY_LAYER = ("layer_types", "no_rope_layers")
"""Keys with an entry for each layer."""


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's buffers, which GPT-J has as plain attributes in transformers 4."""
    yield from module.buffers(recurse=False)
    yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _with_buffers(module: nn.Module, config: PretrainedConfig) -> nn.Module:
    """Return a module whose buffers, which no file has, hold values: rotary frequencies, or Gemma's embedding scale."""
    if hasattr(module, "embed_scale"):
        module.embed_scale = torch.tensor(getattr(module, "scalar_embed_scale", config.hidden_size**0.5))
        return module
    # in transformers 4, layers with a window have a configuration of their own (Gemma 3) or a type (OLMo 3)
    own = {"rope_type": module.rope_type} if "rope_type" in signature(type(module)).parameters else {}
    created: nn.Module = type(module)(config=getattr(module, "config", config), **own)
    return created.train(module.training)


def _is_in_layer(name: str) -> bool:
    return any(f"{part}.0." in name for part in ("layers", "h", "block"))
