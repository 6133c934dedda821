# SPDX-License-Identifier: Apache-2.0
"""Tiny random multi-modal models, whose language models are converted: ties, windows, ropes and files vary."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conformance.families.tiny import SHAPE, Tiny, of

IMAGE_TOKEN = 100
"""The token that stands for an image; without one, it is a word like any other."""
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_OTHERS: dict[str, dict[str, Any]] = {
    "Gemma3": {"vision_config": _VISION | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
    "Mistral3": {"vision_config": _VISION | {"model_type": "pixtral", "head_dim": 8}},
}
"""The keys of the parts that are left out, by the name of the classes."""
_YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
_GROWS = {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}}
_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
_ODD = {"hidden_size": 30, "head_dim": 10, "intermediate_size": 37, "num_attention_heads": 3, "num_key_value_heads": 1}
_UNTIED = {"tie_word_embeddings": False}


def _text(kind: str, /, **changes: Any) -> dict[str, Any]:
    return {"text_config": SHAPE | {"model_type": kind} | changes}


_GEMMA = {"head_dim": 16, "sliding_window": 7}
_MODELS: dict[str, Tiny] = of(
    "Gemma3",
    plain=_text("gemma3_text", **_GEMMA, sliding_window_pattern=2, query_pre_attn_scalar=16),
    modules=_text("gemma3_text", **_GEMMA, rope_parameters=_ROPES, sliding_window_pattern=3),
    parts=_text("gemma3_text", **_GEMMA, **_UNTIED) | _UNTIED,
    pickle=_text("gemma3_text", head_dim=8, sliding_window=4096),
    untied_modules=_text("gemma3_text", **_ODD, **_UNTIED, attention_bias=True, sliding_window=9) | _UNTIED,
) | of(
    "Mistral3",
    plain=_text("mistral", sliding_window=None) | _UNTIED,
    tied=_text("mistral", sliding_window=None),  # text_config says no, as transformers writes it
    parts=_text("mistral", sliding_window=7, **_ODD) | _UNTIED,
    modules=_text("ministral3", **_GROWS) | _UNTIED,
    pickle=_text("ministral3", sliding_window=7, **_GROWS, tie_word_embeddings=True),
)
MULTI_MODAL_FAMILIES = {
    f"images-{name}": replace(tiny, form=re.split("[-_]", name)[-1]) for name, tiny in _MODELS.items()
}
"""The configurations by name, whose last word may be a form of the files."""


def config_of(tiny: Tiny, **tokens: int) -> Any:
    """Return the configuration of a multi-modal model. tokens: `vocab_size` and the ids of special tokens."""
    import transformers

    text = tokens | tiny.changes["text_config"]
    kind = text["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    others = _OTHERS[tiny.prefix] | {"image_token_index": IMAGE_TOKEN} | tiny.changes
    return getattr(transformers, f"{tiny.prefix}Config")(**others | {"text_config": text})


def write(folder: Path, model: Any, form: str) -> None:
    """Save a model: whole, in `parts`, with the names of transformers' `modules`, or as `pickle`."""
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if form == "parts" else {}))
    path = folder / "model.safetensors"
    own = model.state_dict()
    if form == "modules":
        kept = {_module(name) for name in load_file(path)}
        save_file({name: own[name].clone() for name in kept}, path, metadata={"format": "pt"})
    elif form == "pickle":  # with both of two tied weights
        torch.save(own, folder / "pytorch_model.bin")
        path.unlink()


def _module(name: str) -> str:
    """Return a module's name in transformers, for the name that it writes."""
    return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}".replace(".model.", ".")


def language_model(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the language model under its own names, for those of a multi-modal model's files."""
    found = {}
    for name, tensor in stored.items():
        if "lm_head" in name or "language_model" in name:
            own = name.replace("model.language_model.", "model.").replace("language_model.", "")
            found[own] = tensor
    embedding = found["model.embed_tokens.weight"]
    if torch.equal(found.get("lm_head.weight", torch.zeros(0)), embedding):
        del found["lm_head.weight"]  # a pickle has both
    return found
