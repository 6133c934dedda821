# SPDX-License-Identifier: Apache-2.0
"""Bases of each Hugging Face layout with adapters, and what PEFT computes, by its formulas and by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_launcher.adapters.archive import load_adapter, save_adapter
from nemo_launcher.conversion.convert import convert
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.t5.model import Row
from tests import t5
from tests.checkpoint.test_hf_families import FAMILIES, save
from tests.engine import adapted
from tests.engine import logits_of as gpt_logits
from tests.methods import model_section

IDS = torch.randint(3, 70, (1, 40), generator=torch.Generator().manual_seed(1))
_T5: dict[str, dict[str, Any]] = {
    "t5": {"tied": True, "feed_forward_proj": "relu"},
    "t5_gated": {"tied": False, "feed_forward_proj": "gated-gelu"},
}
BASES = ("llama_head_dim", "qwen2_tied", "gpt2_inner", *_T5)


def make_base(folder: Path, name: str) -> Path:
    """Write a random Hugging Face model to `folder/hf` and convert it; return the base."""
    if name in _T5:
        t5.save_t5(folder / "hf", **_T5[name])
    else:
        save(folder / "hf", *FAMILIES[name])
    convert(folder / "hf", folder / "base.nemo")
    return folder / "base.nemo"


def make_adapter(path: Path, base: Path, method: str, **changes: Any) -> Path:
    """Write a random adapter of a base; changes: of the method's settings."""
    config = model_section(method, **changes)
    loaded, adapters = adapted(base, config)
    identity = {"base_fingerprint": loaded.fingerprint, "base_settings": loaded.settings}
    own = config | identity | {"base_checksum": loaded.checksum, "language_model_path": str(base)}
    save_adapter(path, own, adapters.state_dict())
    return path


def logits_here(base: Path, adapter: Path | None = None) -> Tensor:
    """Return the logits of IDS, [s, vocabulary]; a T5's of the second half after the first."""
    loaded: Base = load_base(base)
    if adapter is not None:
        load_adapter(adapter, loaded)
    if loaded.family.name == "t5":
        with torch.no_grad():
            found: Tensor = loaded.model.logits_of(loaded.model(Row(IDS[:, :20], [20]), Row(IDS[:, 20:], [20])))
        return found
    return gpt_logits(loaded, IDS)[0]


@torch.no_grad()
def greedy_here(base: Path, adapter: Path, count: int) -> list[int]:
    """Return the most likely next tokens after the first half of IDS; of a T5, after token 0."""
    loaded = load_base(base)
    load_adapter(adapter, loaded)
    prompt, answer = IDS[:, :20], [0]
    for _ in range(count):
        if loaded.family.name == "t5":
            hidden = loaded.model(Row(prompt, [20]), Row(torch.tensor([answer]), [len(answer)]))
            logits = loaded.model.logits_of(hidden)
        else:
            logits = gpt_logits(loaded, torch.cat((prompt, torch.tensor([answer[1:]], dtype=torch.int64)), dim=1))[0]
        answer.append(int(logits[-1].argmax()))
    return answer[1:]


@torch.no_grad()
def logits_there(model: Any) -> Tensor:
    """Return the same logits of a transformers model."""
    halves = {"input_ids": IDS[:, :20], "decoder_input_ids": IDS[:, 20:]}
    logits: Tensor = model(**(halves if model.config.is_encoder_decoder else {"input_ids": IDS})).logits
    return logits[0]


def load_there(folder: Path) -> Any:
    """Return the transformers model in a folder."""
    import transformers

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(folder).eval()


@torch.no_grad()
def with_peft_formulas(model: Any, folder: Path) -> Any:
    """Fold a PEFT folder into a model by the published formulas: W * l (IA3), W + alpha / r * B A (LoRA)."""
    config, tensors = peft_config(folder), load_file(folder / "adapter_model.safetensors")
    modules = dict(model.named_modules())
    for name, tensor in tensors.items():
        path, _, kind = name.removeprefix("base_model.model.").partition(".ia3_l" if "ia3_l" in name else ".lora_")
        module = modules[path]
        weight = module.weight.t() if type(module).__name__ == "Conv1D" else module.weight
        if "ia3_l" in name:
            weight.mul_(tensor)
            if module.bias is not None and tensor.size(1) == 1:
                module.bias.mul_(tensor[:, 0])
        elif kind.startswith("A"):
            rank = tensor.size(0)
            scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
            weight.add_(scale * (tensors[name.replace("lora_A", "lora_B")] @ tensor))
    return model


def peft_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return content


def write_peft(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a PEFT folder; tensors: by their names without PEFT's prefix."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    own = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Compare logits: within 1e-5 of the largest; torch 2.6 rounds otherwise."""
    allowed = (4e-5 if torch.__version__.startswith("2.6.") else 1e-5) * float(wanted.abs().max())
    torch.testing.assert_close(found[..., : wanted.size(-1)], wanted, rtol=0, atol=allowed)
