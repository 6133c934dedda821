# SPDX-License-Identifier: Apache-2.0
"""Adapter `.nemo` files: NeMo's form, a plain tar with `model_config.yaml` and a nested dict of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from nemo_launcher.adapters import peft
from nemo_launcher.adapters.injection import AdapterSet, AdapterState
from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.adapters.settings import WHERE, changed_settings
from nemo_launcher.adapters.shards import read_state
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, write_archive
from nemo_launcher.checkpoint.fingerprint import same_settings, same_weights
from nemo_launcher.checkpoint.finite import not_finite
from nemo_launcher.checkpoint.outline import is_adapter, is_peft
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import Base
from nemo_launcher.families.layer_shape import is_gated
from nemo_launcher.families.registry import family_of_adapter
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.values import below, text
from nemo_launcher.megatron import parallel


def save_adapter(path: str | Path, config: Mapping[str, object], state: AdapterState) -> None:
    """Write an adapter archive, whole or not at all. Source of the form: NeMo 1.20, MegatronGPTBaseAdapterModel."""
    write_archive(path, config, {WEIGHTS_NAME: lambda stream: torch.save(state, stream)})


def save_safetensors(path: str | Path, config: Mapping[str, object], state: AdapterState) -> None:
    """Write an adapter as one safetensors file: tensors by `<adapter>.<name>`, the configuration as JSON metadata."""
    flat = {f"{key}.{name}": t.contiguous() for key, tensors in state.items() for name, t in tensors.items()}
    with atomic_path(path) as temporary:
        # save_file would write under a name of its own first, which nobody removes after a kill
        temporary.write_bytes(save(flat, metadata={"format": "pt", "model_config": json.dumps(config)}))


def read_adapter(path: str | Path) -> tuple[dict[str, object], AdapterState]:
    """Return an adapter archive's configuration and weights, in the form of NeMo 1.20 whatever form it has.

    Raises UserError when it is unreadable.
    """
    with Archive(path) as archive:
        config = archive.config()
        if "tokenizer" in config and not is_adapter(config):
            what = "is a base model, not an adapter"
            raise UserError(Problem(str(path), what, "name the .nemo that a learning stage wrote"))
        if is_peft(config):
            config = peft.as_model_section(config, str(path))
        return config, read_state(archive, method_of(config).settings, gated=is_gated(config))


def check_state(state: AdapterState, source: str) -> None:
    """Raise UserError for tensors of an adapter that are no numbers to compute with."""
    problems = []
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            held = tensor.float() if tensor.is_floating_point() else tensor  # as an adapter is held in memory
            problems += not_finite(held, f"{source}: {key}: {name}", "name an adapter of a training that went well")
    if problems:
        raise UserError(problems[:10])


def check_base(config: Mapping[str, object], state: AdapterState, base: Base, source: str) -> None:
    """Raise UserError when an adapter, by its configuration and the names in it, was trained in another base."""
    trained_in = config.get("language_model_path", "its configuration does not tell")
    expected = text(config, "base_fingerprint")
    if expected is not None and not same_weights(expected, base.fingerprint):
        what = f"belongs to another base model (trained in {trained_in}, {expected})"
        raise UserError(Problem(source, what, f"this base is {base.fingerprint}: name the one it was trained in"))
    if config.get("base_checksum", base.checksum) != base.checksum:
        what = f"was trained in a base like this one ({trained_in}), some of whose weights held other numbers"
        raise UserError(Problem(source, what, "name the base it was trained in"))
    if expected is not None and not same_settings(expected, base.fingerprint):
        raise UserError(_other_settings(below(config, "base_settings"), base.settings, source))
    family = family_of_adapter(state)
    if family is not base.family:
        what = f"is an adapter for a {family.title} model, the base is a {base.family.title} model"
        raise UserError(Problem(source, what, f"name the base it was trained in: {trained_in}"))


def _other_settings(trained: Mapping[str, object], here: Mapping[str, object], source: str) -> list[Problem]:
    """Say by which settings of its configuration a base of the same weights computes something else."""
    fix = "name the base it was trained in, or give this one the same setting"
    differing = sorted(key for key in trained.keys() | here.keys() if trained.get(key) != here.get(key))
    return [
        Problem(
            f"{source}: base_settings.{key}", f"was trained with {trained.get(key)}, this base has {here.get(key)}", fix
        )
        for key in differing
    ] or [Problem(source, "was trained in a base of the same weights and other settings", fix)]


def check_adapter(config: Mapping[str, object], state: AdapterState, base: Base, source: str) -> None:
    """Raise UserError when an adapter cannot be put into a base model: as `load_adapter`, and nothing is changed."""
    check_base(config, state, base, source)
    check_state(state, source)
    AdapterSet(base.model, base.shape, config, attached=False).check(state, source)


def load_adapter(path: str | Path, base: Base) -> tuple[AdapterSet, dict[str, object]]:
    """Put the adapter of an archive into a base model; return it, in eval mode, with its configuration.

    Raises UserError when the archive is unreadable, or the adapter belongs to another base.
    """
    config, state = read_adapter(path)
    check_base(config, state, base, str(path))
    check_state(state, str(path))
    adapters = AdapterSet(base.model, base.shape, config)
    adapters.load_state_dict(state, str(path))
    adapters.train(False)
    return adapters, config


def new_adapters(base: Base, config: Mapping[str, object]) -> AdapterSet:
    """Put the adapters of a training job into a base model; they begin as those of `restore_path`, where it has one.

    config: the job's `model` section. Raises UserError for settings that are wrong, and as `load_adapter`.
    """
    path, settings = text(config, "restore_path"), settings_of(config)
    problems = [
        Problem(f"{WHERE}.{wrong.key}", wrong.what, f"{wrong.key}: {wrong.value}")
        for wrong in settings.wrong(parallel.tensor_size())
    ]
    if not path:
        if problems:
            raise UserError(problems)
        return AdapterSet(base.model, base.shape, config)
    earlier, state = read_adapter(path)
    check_base(earlier, state, base, str(path))
    problems += changed_settings(settings_of(earlier, f"{path}: adapter_tuning"), settings, str(path))
    if problems:
        raise UserError(problems)
    check_state(state, str(path))
    adapters = AdapterSet(base.model, base.shape, config)
    adapters.load_state_dict(state, str(path))
    return adapters
