# SPDX-License-Identifier: Apache-2.0
"""Describe a `.nemo` archive, or an adapter in another form, from its configuration and the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.forms.from_adapterhub import is_adapterhub, read_adapterhub_tensors
from nemo_launcher.adapters.forms.peft_config import read_settings
from nemo_launcher.adapters.forms.peft_folder import is_peft_folder, read_peft_config, read_peft_tensors
from nemo_launcher.adapters.registry import layers_of, method_of
from nemo_launcher.checkpoint.adapter_copy import is_copy
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.dist_metadata import distributed_folder
from nemo_launcher.checkpoint.fingerprint import Settings, fingerprint, settings_of
from nemo_launcher.checkpoint.outline import is_adapter
from nemo_launcher.checkpoint.sharding import StoredWeights, weight_files
from nemo_launcher.config.layers import described
from nemo_launcher.data.tokenizer_kinds import is_inside
from nemo_launcher.errors import UserError
from nemo_launcher.families.family import AnyFamily
from nemo_launcher.families.registry import family_of_adapter, family_of_checkpoint
from nemo_launcher.files.values import below, entries

_ONE_FILE = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")


def inspect(path: str | Path) -> dict[str, object]:
    """Return the facts about a base or an adapter; sizes are in bytes. Raises UserError when it is unreadable.

    path: an archive, the safetensors copy of an adapter, or a folder of PEFT or AdapterHub. Weights are memory-mapped;
    only their shapes and the few values of the fingerprint are read.
    """
    if is_peft_folder(Path(path)):
        return _adapterhub(Path(path)) if is_adapterhub(path) else _peft(Path(path))
    if is_copy(Path(path)):
        return {"file": str(path), "bytes": Path(path).stat().st_size, **_ONE_FILE} | _adapter(path)
    with Archive(path) as archive:
        config = archive.config()
        distributed = distributed_folder(archive.names) is not None and not is_adapter(config)
        files = [] if distributed else weight_files(archive)
        facts: dict[str, object] = {
            "file": str(path),
            "bytes": sum(archive.size(name) for name in archive.names),
            "tensor_model_parallel_size": len(files[0]) if files else config.get("tensor_model_parallel_size"),
            "pipeline_model_parallel_size": len(files) or config.get("pipeline_model_parallel_size"),
        }
        if is_adapter(config):
            return facts | _adapter(path)
        return facts | _base(archive, config)


def _peft(folder: Path) -> dict[str, object]:
    config = read_peft_config(folder)
    settings = read_settings(config, str(folder))
    facts = {"kind": f"PEFT adapter ({config.get('task_type') or 'no task'})", "method": settings.method}
    return _elsewhere(folder, facts, config.get("base_model_name_or_path"), read_peft_tensors(folder))


def _adapterhub(folder: Path) -> dict[str, object]:
    config = read_peft_config(folder)
    facts = {"kind": f"AdapterHub adapter ({config.get('model_class') or 'no model class'})", "method": "bottleneck"}
    return _elsewhere(folder, facts, config.get("model_name"), read_adapterhub_tensors(folder))


def _elsewhere(
    folder: Path, facts: Mapping[str, object], base: object, tensors: Mapping[str, Tensor]
) -> dict[str, object]:
    """Return the facts about the adapter of another program; base: the name of its base there."""
    return {
        "file": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        **_ONE_FILE,
        **facts,
        "layers": None,
        "trainable_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "tasks": [],
        "base": base or None,
        "base_fingerprint": None,
        "adapters": {name: {"shape": list(tensor.shape)} for name, tensor in tensors.items()},
    }


def readable(facts: Mapping[str, object]) -> str:
    """Return the facts as readable lines; adapters that differ only in their layer share one line.

    Texts come from the file, so control characters are escaped.
    """
    rows = dict(facts)
    adapters = rows.pop("adapters", None)
    adapters = adapters if isinstance(adapters, dict) else {}
    lines = [f"{name.replace('_', ' '):<30}{_shown(value)}" for name, value in rows.items()]
    kinds: dict[str, list[str]] = {}
    for key, tensors in adapters.items():
        shapes = ", ".join(f"{name} {shape}" for name, shape in tensors.items())
        kinds.setdefault(f"{re.sub(r'layers[.][0-9]+', 'layers.N', key)}: {shapes}", []).append(key)
    if adapters:
        lines += [f"{'adapters':<30}{len(adapters)}", *(f"  {len(keys)} x {kind}" for kind, keys in kinds.items())]
    return "\n".join(line if line.isprintable() else ascii(line)[1:-1] for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _base(archive: Archive, config: dict[str, object]) -> dict[str, object]:
    family = family_of_checkpoint(config)
    weights = StoredWeights(archive, family.renaming(config), gated=family.is_gated(config))
    section = {**config, **below(config, "encoder")}
    tokenizer = below(config, "tokenizer")
    return {
        "kind": f"{family.title} base model",
        "layout": ("NeMo 2" if archive.is_nemo2 else "NeMo mcore" if config.get("mcore_gpt") else "NeMo legacy")
        + (", distributed checkpoint" if distributed_folder(archive.names) is not None else ""),
        "parameters": weights.num_parameters(),
        **{key: section[key] for key in _SIZES if section.get(key) is not None},
        "embedding_rows": weights.rows(family.embedding) if family.embedding in weights.names else None,
        "precision": str(config.get("precision")),
        "tokenizer": " ".join(str(tokenizer[key]) for key in ("library", "type") if tokenizer.get(key)) or None,
        "tokenizer_inside": is_inside(archive),
        "fingerprint": fingerprint(weights, _settings(family, weights, config, str(archive.path))),
    }


def _settings(family: AnyFamily, weights: StoredWeights, config: dict[str, object], source: str) -> Settings | None:
    """Return the settings that a fingerprint covers; None for an unusable base, which only its weights identify."""
    if family.embedding not in weights.names:
        return None
    try:
        shape = family.read_shape(config, vocab_size=weights.rows(family.embedding), source=source)
    except UserError:
        return None
    return settings_of(shape, config)


def _adapter(path: str | Path) -> dict[str, object]:
    config, state = read_adapter(path)
    return {
        "kind": f"adapter for a {family_of_adapter(state).title} model",
        "method": method_of(config).name,
        "layers": described(layers_of(config, f"{path}: ")),
        "trainable_parameters": sum(tensor.numel() for tensors in state.values() for tensor in tensors.values()),
        "tasks": [str(template.get("taskname")) for template in entries(config, "task_templates")],
        "base": config.get("language_model_path"),
        "base_fingerprint": config.get("base_fingerprint"),
        "adapters": {
            key: {name: list(tensor.shape) for name, tensor in tensors.items()} for key, tensors in state.items()
        },
    }
