# SPDX-License-Identifier: Apache-2.0
"""Adapter `.nemo` files in NeMo's format: a plain tar with `model_config.yaml` and a nested dict of tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from nemo_launcher.adapters import peft
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.adapters.registry import layers_of, method_of, settings_of
from nemo_launcher.adapters.settings import changed_settings
from nemo_launcher.adapters.shards import StageLayers, read_state
from nemo_launcher.checkpoint.adapter_copy import CONFIG_KEY, is_copy, read_copy_config
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.fingerprint import same_settings, same_weights
from nemo_launcher.checkpoint.finite import not_finite
from nemo_launcher.checkpoint.outline import is_adapter, is_peft
from nemo_launcher.checkpoint.safetensors_file import read_header
from nemo_launcher.checkpoint.stored_tensor import shown
from nemo_launcher.checkpoint.stored_values import stored_values
from nemo_launcher.config.families import is_t5
from nemo_launcher.config.layers import ALL
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.families.layer_shape import is_gated
from nemo_launcher.families.registry import family_of_adapter
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.values import below, text, whole
from nemo_launcher.megatron import parallel


def save_adapter(path: str | Path, config: Mapping[str, object], state: AdapterState) -> None:
    """Write an adapter archive atomically. Source of the format: NeMo 1.20, MegatronGPTBaseAdapterModel."""
    write_archive(path, config, {WEIGHTS_NAME: lambda stream: torch.save(state, stream)})


def save_safetensors(path: str | Path, config: Mapping[str, object], state: AdapterState) -> None:
    """Write an adapter as one safetensors file: tensors by `<adapter>.<name>`, the configuration as JSON metadata."""
    flat = {f"{key}.{name}": t.contiguous() for key, tensors in state.items() for name, t in tensors.items()}
    with atomic_path(path) as temporary:
        # save_file writes to its own temporary file first, which would remain after a kill
        temporary.write_bytes(save(flat, metadata={"format": "pt", CONFIG_KEY: json.dumps(config)}))


def _read_safetensors(path: Path) -> tuple[dict[str, object], AdapterState]:
    """Return what `save_safetensors` wrote. Raises UserError for tensors without an adapter's name."""
    config, state = read_copy_config(path), AdapterState()
    for name, tensor in read_header(path).items():
        layer, mark, rest = name.rpartition(":")
        adapter, _, part = rest.partition(".")
        if not (mark and part):
            what = "is not the name of an adapter's tensor"
            raise UserError(Problem(f"{path}: {shown(name)}", what, "use the file that a learning stage wrote"))
        state.setdefault(f"{layer}:{adapter}", {})[part] = stored_values(tensor)
    return config, state


def read_adapter(path: str | Path) -> tuple[dict[str, object], AdapterState]:
    """Return an adapter's configuration and weights, converted to the format of NeMo 1.20.

    path: an archive, or the safetensors copy beside it. Raises UserError if it is unreadable or not an adapter.
    """
    if is_copy(Path(path)):
        return _read_safetensors(Path(path))
    with Archive(path) as archive:
        config = archive.config()
        if "tokenizer" in config and not is_adapter(config):
            what = "is a base model, not an adapter"
            raise UserError(Problem(str(path), what, "give the path of a .nemo file that a learning stage wrote"))
        if is_peft(config):
            config = peft.as_model_section(config, str(path))
        is_partial = layers_of(config, f"{path}: ") != ALL
        num_layers = None if is_t5(config) else whole(config, "num_layers")
        stages = StageLayers(num_layers) if is_partial else None
        return config, read_state(archive, method_of(config).settings, gated=is_gated(config), stages=stages)


def check_state(state: AdapterState, source: str) -> None:
    """Raise UserError if an adapter has tensors with infinite or NaN values."""
    problems = []
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            held = tensor.float() if tensor.is_floating_point() else tensor  # the dtype of adapters in memory
            problems += not_finite(held, f"{source}: {key}: {name}", "use another adapter: this training diverged")
    if problems:
        raise UserError(problems[:10])


def check_base(config: Mapping[str, object], state: AdapterState, base: Base, source: str) -> None:
    """Raise UserError if an adapter was trained in another base, by its configuration and its keys."""
    trained_in = config.get("language_model_path", "unknown: its configuration does not say")
    expected = text(config, "base_fingerprint")
    if expected is not None and not same_weights(expected, base.fingerprint):
        what = f"belongs to another base model (trained in {trained_in}, {expected})"
        raise UserError(Problem(source, what, f"this base is {base.fingerprint}: use the one it was trained in"))
    if config.get("base_checksum", base.checksum) != base.checksum:
        what = f"was trained in a similar base ({trained_in}), in which some weights have other values"
        raise UserError(Problem(source, what, "use the base that the adapter was trained in"))
    if expected is not None and not same_settings(expected, base.fingerprint):
        raise UserError(_other_settings(below(config, "base_settings"), base.settings, source))
    family = family_of_adapter(state)
    if family is not base.family:
        what = f"is an adapter for a {family.title} model, the base is a {base.family.title} model"
        raise UserError(Problem(source, what, f"use the base that the adapter was trained in: {trained_in}"))
    settings, block = settings_of(config, f"{source}: "), method_of(config).block
    for problem in settings.layer_problems(layer_counts(base), f"{source}: {block}.layers"):
        raise UserError(dataclasses.replace(problem, fix="use the base that the adapter was trained in"))


def layer_counts(base: Base) -> dict[str, int]:
    """Return the number of layers of each of a base's stacks."""
    return {name: shape.num_layers for name, shape in base.family.stack_shapes(base.shape).items()}


def _other_settings(trained: Mapping[str, object], here: Mapping[str, object], source: str) -> list[Problem]:
    """Return a Problem for each setting that makes a base with the same weights compute something else."""
    fix = "use the base that the adapter was trained in, or give this one the same setting"
    differing = sorted(key for key in trained.keys() | here.keys() if trained.get(key) != here.get(key))
    return [
        Problem(
            f"{source}: base_settings.{key}", f"was trained with {trained.get(key)}, this base has {here.get(key)}", fix
        )
        for key in differing
    ] or [Problem(source, "was trained in a base with the same weights but other settings", fix)]


def check_adapter(config: Mapping[str, object], state: AdapterState, base: Base, source: str) -> None:
    """Raise UserError if an adapter does not fit a base model, like `load_adapter`, without changing the model."""
    check_base(config, state, base, source)
    check_state(state, source)
    AdapterSet(base.model, base.shape, config, attached=False).check(state, source)


def open_adapter(path: str | Path, base: Base) -> tuple[AdapterSet, dict[str, object]]:
    """Read the adapter of an archive for a base model; return it in eval mode, not yet attached, and its configuration.

    Raises UserError if the archive is unreadable or the adapter belongs to another base.
    """
    config, state = read_adapter(path)
    check_base(config, state, base, str(path))
    check_state(state, str(path))
    adapters = AdapterSet(base.model, base.shape, config, attached=False)
    adapters.load_state_dict(state, str(path))
    adapters.train(False)
    return adapters, config


def load_adapter(path: str | Path, base: Base) -> tuple[AdapterSet, dict[str, object]]:
    """Load the adapter of an archive into a base model, which has none; like `open_adapter`."""
    adapters, config = open_adapter(path, base)
    adapters.attach()
    return adapters, config


def new_adapters(base: Base, config: Mapping[str, object]) -> AdapterSet:
    """Add the adapters of a training job to a base model, with the weights of `restore_path` if it is set.

    config: the job's `model` section. Raises UserError for invalid settings, and like `load_adapter`.
    """
    path, settings = text(config, "restore_path"), settings_of(config)
    block, counts = method_of(config).block, layer_counts(base)
    problems = [
        Problem(f"model.{block}.{wrong.key}", wrong.what, f"{wrong.key}: {wrong.value}")
        for wrong in settings.wrong(parallel.tensor_size())
    ]
    problems += settings.layer_problems(counts, f"model.{block}.layers")
    if not path:
        if problems:
            raise UserError(problems)
        return AdapterSet(base.model, base.shape, config)
    earlier, state = read_adapter(path)
    check_base(earlier, state, base, str(path))
    problems += changed_settings(settings_of(earlier, f"{path}: "), settings, counts, block, str(path))
    if problems:
        raise UserError(problems)
    check_state(state, str(path))
    adapters = AdapterSet(base.model, base.shape, config)
    adapters.load_state_dict(state, str(path))
    return adapters
