# SPDX-License-Identifier: Apache-2.0
"""What holds for a base of every decoder architecture, against transformers with the same weights.

Each check returns its figure; `check` runs all of them for one configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peft import IA3Config, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor

from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.adapters.forms.folded import export_folded
from nemo_launcher.adapters.forms.methods import FORMS
from nemo_launcher.adapters.forms.peft import export_peft
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.checkpoint.architectures.architecture import Layout
from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.conversion.convert import convert
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.samples import GPTSample
from tests.conformance.families.models import Tiny, save, sees_images
from tests.conformance.families.multi_modal_models import IMAGE_TOKEN, language_model
from tests.engine import gradients_of, logits_of, random_tree, randomize
from tests.methods import model_section

LENGTH = 40
NEW_TOKENS = 8


class Both:
    """A random model of transformers, and the base that it was converted to."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        self.theirs = save(folder / "hf", tiny)
        self.sees_images = sees_images(tiny)
        self.path = folder / "base.nemo"
        convert(folder / "hf", self.path, language_model=self.sees_images)
        self.base: Base = load_base(self.path)
        self.architecture = KINDS[self.theirs.config.get_text_config().model_type]
        self.ids = torch.randint(3, 300, (1, LENGTH), generator=torch.Generator().manual_seed(1))
        if self.sees_images:
            self.ids[0, 4:6] = IMAGE_TOKEN

    def module(self, name: str) -> str:
        """Return the name in `theirs` of a module of the converted architecture."""
        return name.replace("model.", "model.language_model.", 1) if self.sees_images else name

    def stored(self) -> dict[str, Tensor]:
        """Return the weights in the folder of `theirs` that the base has."""
        files = [*self.path.parent.glob("hf/*.safetensors"), *self.path.parent.glob("hf/*.bin")]
        parts = [load_file(f) if f.suffix == ".safetensors" else torch.load(f, weights_only=True) for f in files]
        found = {name: tensor for part in parts for name, tensor in part.items()}
        return language_model(found) if self.sees_images else found


@torch.no_grad()
def logits(both: Both) -> dict[str, float]:
    """Return the largest difference of the logits, and the largest logit."""
    wanted = both.theirs(both.ids).logits
    found = logits_of(both.base, both.ids)[..., : wanted.size(-1)]
    return {"logits": float((found - wanted).abs().max()), "largest_logit": float(wanted.abs().max())}


@torch.no_grad()
def tokens(both: Both) -> dict[str, float]:
    """Return the share of prompts, in a tree of prefixes, whose greedy tokens are not those of transformers."""
    prompts = [sample.input_ids for sample in random_tree(0, 300, max_length=60)]
    samples = [GPTSample(ids, 0, {}, "") for ids in prompts]
    found = generate(both.base, samples, Sampling(tokens_to_generate=NEW_TOKENS), batch_size=4)
    wanted = [_greedy(both, ids) for ids in prompts]
    differing = sum(a != b for a, b in zip(found, wanted, strict=True))
    return {"differing_tokens": differing / len(prompts)}


def _greedy(both: Both, ids: Sequence[int]) -> list[int]:
    """Return the most likely tokens of transformers, each from a full forward pass, up to the end of text."""
    text, limit = list(ids), both.base.tokenizer.vocab_size
    for _ in range(NEW_TOKENS):
        token = int(both.theirs(torch.tensor([text])).logits[0, -1, :limit].argmax())
        if token == both.base.tokenizer.eos_id:
            break
        text.append(token)
    return text[len(ids) :]


def gradients(both: Both) -> dict[str, float]:
    """Return the largest difference of IA3's gradients to PEFT's, relative to the largest.

    Those without shared prefixes are compared too.
    """
    adapters = AdapterSet(both.base.model, both.base.shape, model_section("ia3"))
    randomize(adapters)
    samples = random_tree(3, 300, count=6, max_length=50)
    loss, shared, _ = gradients_of(both.base, adapters, samples, micro_batch_size=6)
    alone_loss, alone, _ = gradients_of(both.base, adapters, samples, micro_batch_size=6, share_prefix=False)
    vectors = _vectors(adapters)
    adapters.detach()
    wanted_loss, wanted = _with_peft(both, vectors, samples)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    scale = max(largest, 1e-12)
    return {
        "gradients": max(float((shared[n] - wanted[n]).abs().max()) for n in wanted) / scale,
        "gradients_without_sharing": max(float((shared[n] - alone[n]).abs().max()) for n in shared) / scale,
        "loss": abs(loss - wanted_loss),
        "loss_without_sharing": abs(loss - alone_loss),
        "largest_gradient": largest,
    }


def _vectors(adapters: AdapterSet) -> dict[str, Tensor]:
    """Return a trainable copy of each of IA3's vectors by its name."""
    return {
        f"{key.replace(':', '.adapter_layer.')}.{name}": parameter.detach().clone().requires_grad_()
        for key, adapter in adapters.adapters.items()
        for name, parameter in adapter.named_parameters()
    }


def _with_peft(both: Both, vectors: dict[str, Tensor], samples: Sequence[GPTSample]) -> tuple[float, dict[str, Tensor]]:
    """Return the mean of the samples' losses, each the mean over its answer's tokens, and the gradients of PEFT's IA3.

    PEFT has one vector for a fused projection: its queries have ones, and its gradient has those of keys and values.
    """
    layers = [_places(both, vectors, number) for number in range(both.base.shape.num_layers)]  # type: ignore[attr-defined]
    places = {name: place for layer, _ in layers for name, place in layer.items()}
    config = IA3Config(target_modules=list(places), feedforward_modules=[name for _, last in layers for name in last])
    model = inject_adapter_in_model(config, copy.deepcopy(both.theirs))
    there = {name: model.get_submodule(name).ia3_l["default"] for name in places}
    for name, vector in places.items():
        there[name].data.copy_(vector.detach().view_as(there[name]))
    total, count = torch.zeros(()), 0
    for sample in samples:
        ids = torch.tensor([sample.input_ids])
        found = model(ids).logits[0, :-1]
        start = max(sample.answer_start, 1)
        total = total + F.cross_entropy(found[start - 1 :], ids[0, start:], reduction="sum")
        count += ids.size(1) - start
    loss = total / count
    loss.backward()
    torch.autograd.backward(list(places.values()), [there[name].grad.view_as(places[name]) for name in places])
    return float(loss), {name: vector.grad for name, vector in vectors.items() if vector.grad is not None}


def _places(both: Both, vectors: dict[str, Tensor], number: int) -> tuple[dict[str, Tensor], list[str]]:
    """Return the vector of each of PEFT's modules in a layer, by the module's name, and the feed-forward's name.

    Experts have no vector.
    """
    layer = {name.split(".adapter_layer.")[1]: vector for name, vector in vectors.items() if f".{number}." in name}
    key, value = (next(v for n, v in layer.items() if word in n) for word in ("key", "value"))
    last = {}
    weights = both.architecture.weights
    qkv = weights["decoder.layers.*.self_attention.linear_qkv"]
    names = [both.module(name.replace("*", str(number))) for name in qkv.names]
    if both.architecture.experts is None:
        name = both.module(weights["decoder.layers.*.mlp.linear_fc2"].names[0].replace("*", str(number)))
        last[name] = next(vector for name, vector in layer.items() if "mlp" in name)
    if qkv.layout is Layout.QKV:
        return last | {names[1]: key, names[2]: value}, list(last)
    return last | {names[0]: _fused(both, qkv.layout, key, value)}, list(last)


def _fused(both: Both, layout: Layout, key: Tensor, value: Tensor) -> Tensor:
    """Return the factors of a fused projection: all queries, keys and values in this order, or the same by group."""
    shape: Any = both.base.shape
    queries = torch.ones(shape.num_attention_heads * shape.kv_channels)
    if layout is not Layout.QKV_BY_GROUP:
        return torch.cat((queries, key, value))
    parts = [part.view(shape.num_query_groups, -1) for part in (queries, key, value)]
    return torch.cat(parts, dim=1).flatten()


def round_trip(both: Both) -> dict[str, float]:
    """Return how many tensors differ from the source's after an export without a change, and the difference with IA3.

    The exported model has IA3 in its weights; transformers' logits of it are compared with those here.
    """
    folder = both.path.parent
    adapters = AdapterSet(both.base.model, both.base.shape, model_section("ia3"))
    _export(both, adapters, folder / "unchanged")
    randomize(adapters)
    _export(both, adapters, folder / "adapted")
    found = logits_of(both.base, both.ids)
    adapters.detach()
    kernel = both.theirs.config._attn_implementation
    model_class = getattr(transformers, both.architecture.name)
    there = model_class.from_pretrained(folder / "adapted", attn_implementation=kernel).eval()
    with torch.no_grad():
        wanted = there(both.ids).logits
    source, unchanged = both.stored(), load_file(folder / "unchanged/model.safetensors")
    positions = both.architecture.weights.get("embedding.position_embeddings")
    if positions is not None and positions.layout is Layout.WITHOUT_TWO_ROWS:  # no text uses them
        source[f"{positions.names[0]}.weight"][:2] = 0
    names = source.keys() | unchanged.keys()
    differing = [n for n in names if n not in source or n not in unchanged or not torch.equal(source[n], unchanged[n])]
    difference = float((found[..., : wanted.size(-1)] - wanted).abs().max())
    return {"differing_tensors": len(differing), "adapted_logits": difference}


def peft(both: Both) -> dict[str, float]:
    """Return the largest difference of the logits to those of PEFT with the folder of each method that it has."""
    figures = {}
    for method in FORMS:
        section = model_section(method)
        if both.architecture.experts is not None and settings_of(section).expert_problems(""):
            section = model_section(method, target_modules=["attention"])
        folder = both.path.parent / method
        adapters = AdapterSet(both.base.model, both.base.shape, section)
        randomize(adapters)
        _save(both, adapters, section, folder.with_suffix(".nemo"))
        found = logits_of(both.base, both.ids)
        adapters.detach()
        export_peft(folder.with_suffix(".nemo"), both.path, folder)
        there = PeftModel.from_pretrained(copy.deepcopy(both.theirs), folder).eval()
        with torch.no_grad():
            wanted = there(both.ids).logits
        figures[f"peft_{method}"] = float((found[..., : wanted.size(-1)] - wanted).abs().max())
    return figures


def _export(both: Both, adapters: AdapterSet, folder: Path) -> None:
    """Write the base with an adapter in its weights as a Hugging Face folder."""
    path = folder.with_suffix(".nemo")
    _save(both, adapters, model_section("ia3"), path)
    export_folded(path, both.path, folder)


def _save(both: Both, adapters: AdapterSet, section: dict[str, Any], path: Path) -> None:
    base = both.base
    identity = {"base_fingerprint": base.fingerprint, "base_settings": base.settings, "base_checksum": base.checksum}
    save_adapter(path, section | identity | {"language_model_path": str(both.path)}, adapters.state_dict())


CHECKS = (logits, tokens, gradients, round_trip, peft)


def check(folder: Path, tiny: Tiny) -> dict[str, float]:
    """Return the figures of all checks for one configuration."""
    both = Both(folder, tiny)
    figures: dict[str, float] = {}
    for one in CHECKS:
        figures |= one(both)
    return figures


def exceeded(figures: dict[str, float]) -> list[str]:
    """Return the figures that are too large."""
    limits = {
        "logits": min(1e-4, 1e-5 * max(figures["largest_logit"], 1.0)),
        "differing_tokens": 0.0,
        "gradients": 1e-4,
        "gradients_without_sharing": 1e-4,
        "differing_tensors": 0,
        "adapted_logits": 1e-4,
        **dict.fromkeys((f"peft_{method}" for method in FORMS), 1e-4),
        "loss": 1e-5,
        "loss_without_sharing": 1e-5,
    }
    found = [f"{name} {figures[name]:.1e} > {limit:.1e}" for name, limit in limits.items() if figures[name] > limit]
    return found + (["no gradient"] if figures["largest_gradient"] < 1e-4 else [])
