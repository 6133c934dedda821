# SPDX-License-Identifier: Apache-2.0
"""A base that is described but not loaded: its identity, its weights in the file, and its Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.fingerprint import Settings, fingerprint, settings_of
from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.checkpoint.watch import WatchedFiles
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base, describe_base, stored_sums
from nemo_launcher.families.fit import size_mismatches
from nemo_launcher.families.hf_classes import model_class, num_experts, read_configuration
from nemo_launcher.families.hf_layout import HuggingFaceLayout, NamedWeights
from nemo_launcher.families.hf_table import Table
from nemo_launcher.families.layer_shape import LayerShape, Shape
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import ONE_RANK

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WITH_ENCODER = "SEQ_2_SEQ_LM"


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A base whose model has no values."""

    base: Base
    """The base, with a model on the meta device."""
    weights: StoredWeights
    """The weights in its file, under our names."""

    @property
    def stacks(self) -> Mapping[str, LayerShape]:
        """The shapes of its stacks."""
        return self.base.family.stack_shapes(self.base.shape)


def describe_model(path: str | Path) -> DescribedModel:
    """Read a base's identity, which takes all of its weights once, without loading it.

    Raises UserError like `load_base`.
    """
    source, files = str(path), WatchedFiles(path)
    parallel.initialize(ONE_RANK)
    with Archive(path) as archive:
        found = describe_base(archive)
        problems = size_mismatches(found.weights, found.family.stack_shapes(found.shape), found.shape, source)
        if problems:
            raise UserError(problems[:10])
    with torch.device("meta"):
        model = found.family.build(found.shape, dtype=torch.float32, sizes=ONE_RANK)
    names = [model.names_in_checkpoint.get(name, name) for name, _ in model.named_parameters()]
    settings = settings_of(found.shape, found.config)
    base = Base(
        model=model,
        tokenizer=found.tokenizer,
        shape=found.shape,
        config=found.config,
        device=torch.device("meta"),
        family=found.family,
        fingerprint=fingerprint(found.weights, settings),
        settings=settings,
        sums=stored_sums(Path(path), list(dict.fromkeys(names))),
        dtype=torch.float32,
        num_parameters=found.weights.num_parameters(names),
        files=files,
    )
    return DescribedModel(base, found.weights)


@dataclass(frozen=True, slots=True)
class HuggingFaceForm:
    """A base as a Hugging Face model."""

    layout: HuggingFaceLayout[Shape]
    """Its architecture."""
    table: Table
    """Its modules and ours."""
    configuration: dict[str, object]
    """Its config.json, without the settings of generation."""

    def config(self) -> PretrainedConfig:
        """Return its configuration as transformers reads it."""
        return read_configuration(self.layout.architecture, self.configuration, self.layout.kind)

    def names(self, model: DescribedModel) -> dict[str, list[str]]:
        """Return our weights that the model of Hugging Face stores, with its names of their parts."""
        own = (model.base.sums.keys() | self.layout.copies.keys()) - self.added(model)
        return {
            f"{entry.ours}.{suffix}": [f"{name}.{suffix}" for name in entry.theirs]
            for entry in self.table.entries(model.stacks)
            for suffix in ("weight", "bias")
            if f"{entry.ours}.{suffix}" in own
        }

    def added(self, model: DescribedModel) -> set[str]:
        """Return our biases of zeros that the model of Hugging Face lacks (HuggingFaceLayout.known)."""
        known = self.layout.known
        if known is None:
            return set()
        absent = {
            f"{entry.ours}.bias"
            for entry in self.table.entries(model.stacks)
            if not any(f"{name}.bias" in known for name in entry.theirs)
        }
        return {name for name in absent & model.base.sums.keys() if not model.weights.read(name).any()}

    def source_of(self, ours: str, base: Base) -> str:
        """Return the base's weight with the values of one of ours."""
        return ours if ours in base.sums else self.layout.copies[ours]


def hugging_face_form(model: DescribedModel) -> HuggingFaceForm:
    """Return the Hugging Face architecture that computes what a base does.

    Each architecture's configuration is converted back; its settings must be those of the base. Raises UserError with
    the settings that none has.
    """
    base, closest = model.base, (1 << 30, "")
    own = base.family.source_layout(base.config, str(base.files.path))
    for layout in (*([] if own is None else [own]), *base.family.layouts):
        configuration = {
            "architectures": [layout.architecture],
            "model_type": layout.kind,
            **layout.configuration(base.shape),
            **_token_ids(base.tokenizer, is_encoder_decoder=layout.task == _WITH_ENCODER),
        }
        form = HuggingFaceForm(layout, layout.table(base.shape), configuration)
        names = form.names(model)
        wanted, found = _computed(base.settings), _computed(_converted_back(base, form, names))
        other = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        differing = [f"{key} {wanted.get(key)} ({layout.kind} has {found.get(key)})" for key in other]
        differing += [
            f"{name} (not in {layout.kind})" for name in sorted(base.sums.keys() - names.keys() - form.added(model))
        ]
        differing += _other_names(form, {name for several in names.values() for name in several})
        if not differing:
            return form
        closest = min(closest, (len(differing), ", ".join(differing[:4])))
    what = f"no Hugging Face architecture that is known here computes what this base does: {closest[1]}"
    raise UserError(Problem(str(base.files.path), what, "use the base with nemo-launcher"))


def _token_ids(tokenizer: Tokenizer, *, is_encoder_decoder: bool) -> dict[str, object]:
    """Return the special tokens as config.json has them; a decoder behind an encoder starts with padding."""
    ids: dict[str, object] = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    return ids | ({"decoder_start_token_id": tokenizer.pad_id} if is_encoder_decoder else {})


def _computed(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings without those that only say how weights are stored."""
    return {key: value for key, value in settings.items() if not key.endswith("norm_about_zero")}


def _other_names(form: HuggingFaceForm, written: set[str]) -> list[str]:
    """Return the weights that the architecture lacks, and those of it that the base lacks; tied ones may be absent."""
    with torch.device("meta"):
        model = model_class(form.layout.architecture, form.layout.kind)(form.config())
    kind = form.layout.kind
    required, known = (
        KINDS[kind].names_in_files(names, num_experts(model.config))
        for names in ([name for name, _ in model.named_parameters()], model.state_dict())
    )
    return [
        *(f"{name} (not in {kind})" for name in sorted(written - known)),
        *(f"no {name} (as {kind} has)" for name in sorted(required - written)),
    ]


def _converted_back(base: Base, form: HuggingFaceForm, names: Mapping[str, list[str]]) -> Settings:
    """Return the settings of the base that the conversion makes of a Hugging Face model."""
    values = {theirs: form.source_of(ours, base) for ours, several in names.items() for theirs in several}
    kind = form.layout.kind
    converted = base.family.hugging_face[kind].nemo_config(form.config(), NamedWeights(values))
    shape = base.family.read_shape(converted, vocab_size=base.shape.vocab_size, source=kind)
    return settings_of(shape, converted)
