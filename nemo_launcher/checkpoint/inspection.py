"""What a `.nemo` archive is, told from its configuration and the shapes of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.adapters.registry import method_of
from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER, Archive
from nemo_launcher.checkpoint.fingerprint import fingerprint
from nemo_launcher.checkpoint.sharding import StoredWeights, weight_files
from nemo_launcher.families import family_of_checkpoint


def inspect(path: str | Path) -> dict[str, Any]:
    """Return the facts about a base or adapter archive. Raises UserError when it is unreadable.

    Weights are mapped, and only shapes and the few numbers of the fingerprint are looked at.
    """
    with Archive(path) as archive:
        config = archive.config()
        files = weight_files(archive)
        facts: dict[str, Any] = {
            "file": str(path),
            "weight_files": f"tensor parallel {len(files[0])} x pipeline parallel {len(files)}",
        }
        if "language_model_path" in config:
            return facts | _adapter(path, config)
        return facts | _base(archive, config)


def _base(archive: Archive, config: dict[str, Any]) -> dict[str, Any]:
    family = family_of_checkpoint(config)
    weights = StoredWeights(archive, family.renaming(config), gated=family.is_gated(config))
    section = {**config, **(config.get("encoder") or {})}
    tokenizer = config.get("tokenizer") or {}
    inside = any(name.startswith(f"{TOKENIZER_FOLDER}/") for name in archive.names) or any(
        str(tokenizer.get(key, "")).startswith("nemo:") for key in ("model", "vocab_file")
    )
    return {
        "kind": f"{family.title} base model",
        "layout": "NeMo mcore" if config.get("mcore_gpt") else "NeMo legacy",
        "parameters": weights.num_parameters(),
        **{key: section.get(key) for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")},
        "embedding_rows": weights.rows(family.embedding) if family.embedding in weights.names else None,
        "precision": config.get("precision"),
        "tokenizer": tokenizer.get("library"),
        "tokenizer_inside": inside,
        "fingerprint": fingerprint(weights),
    }


def _adapter(path: str | Path, config: dict[str, Any]) -> dict[str, Any]:
    state = read_adapter(path)[1]
    return {
        "kind": f"adapter ({method_of(config).name})",
        "tasks": [template.get("taskname") for template in config.get("task_templates") or []],
        "parameters": sum(tensor.numel() for tensors in state.values() for tensor in tensors.values()),
        "base": config["language_model_path"],
        "base_fingerprint": config.get("base_fingerprint"),
        "adapters": {
            key: {name: list(tensor.shape) for name, tensor in tensors.items()} for key, tensors in state.items()
        },
    }
