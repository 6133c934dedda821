# SPDX-License-Identifier: Apache-2.0
"""LoRA compared with its formula, W + (alpha / r) B A merged into the base's weights, and with PEFT if installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nemo_launcher.adapters.archive import load_adapter, read_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.adapters.methods.lora.config import LoraSettings
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from tests import gpt, t5
from tests.engine import adapted, logits_of, named_gradients, tiny_gpt_nemo
from tests.methods import model_section

pytestmark = pytest.mark.unit

# adapter -> its projection in our layer
PROJECTIONS = {
    "lora_kqv_adapter": "linear_qkv",
    "lora_q_adapter": "linear_q",
    "lora_kv_adapter": "linear_kv",
    "lora_dense_attention_adapter": "linear_proj",
    "lora_hto4h_adapter": "linear_fc1",
    "lora_4htoh_adapter": "linear_fc2",
}
# adapter -> its projection in NeMo's legacy layout
LEGACY_NAMES = {
    "lora_kqv_adapter": "query_key_value",
    "lora_dense_attention_adapter": "dense",
    "lora_hto4h_adapter": "dense_h_to_4h",
    "lora_4htoh_adapter": "dense_4h_to_h",
}
STYLES: dict[str, dict[str, Any]] = {
    "gpt": {
        "normalization": "layernorm",
        "activation": "gelu",
        "position_embedding_type": "learned_absolute",
        "share_embeddings_and_output_weights": True,
    },
    "llama": {
        "normalization": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "share_embeddings_and_output_weights": False,
    },
}
EXACT = {"rtol": 0, "atol": 1e-5}


def lora(**changes: Any) -> dict[str, Any]:
    return model_section("lora", **{"alpha": 6.0} | changes)


def updated_projections(base: Base) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each adapter with its projection."""
    for path, owner in base.model.named_modules():
        for name, adapter in getattr(owner, "adapter_layer", {}).items():
            yield adapter, base.model.get_submodule(f"{path}.{PROJECTIONS[name]}")


def update_of(adapter: nn.Module, scale: float) -> Tensor:
    return scale * adapter.linear_out.weight.detach() @ adapter.linear_in.weight.detach()


def run(base: Base, family: str) -> Tensor:
    return t5.logits_of(base, t5.random_samples(4)) if family == "t5" else logits_of(base, torch.arange(5, 45)[None])


def path_of(family: str, tiny_base: Path, folder: Path) -> Path:
    return t5.tiny_base(folder / "t5.nemo") if family == "t5" else tiny_base


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize(("alpha", "scale"), [(6.0, 1.5), (None, 1.0)])
def test_it_is_the_base_with_updated_weights(
    family: str, alpha: float | None, scale: float, tiny_base: Path, tmp_path: Path
) -> None:
    path = path_of(family, tiny_base, tmp_path)
    base, _ = adapted(path, lora(alpha=alpha))
    merged = load_base(path)
    found, before = run(base, family), run(merged, family)
    merged = load_base(path)  # loaded again: used weights are packed
    targets = list(updated_projections(base))
    names = {id(module): name for name, module in base.model.named_modules()}
    for adapter, projection in targets:
        merged.model.get_submodule(names[id(projection)]).weight.data += update_of(adapter, scale)
    assert len(targets) == (2 * 4 if family == "llama" else 2 * 4 + 3 * 7)
    assert (found - before).abs().max() > 0.1
    torch.testing.assert_close(found, run(merged, family), rtol=1e-4, atol=1e-4 * float(found.abs().max()))


@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_those_of_the_formula(style: str, tmp_path: Path) -> None:
    """The same model in plain torch with weights W + (alpha / r) B A: logits, and gradients of A and B."""
    config = gpt.CONFIG | STYLES[style]
    weights = gpt.random_weights(config)
    base, adapters = adapted(gpt.write_gpt(tmp_path / "b.nemo", config, {"model_weights.ckpt": weights}), lora())
    adapters.train(False)
    matrices: dict[str, Tensor] = {}
    for key, adapter in adapters.adapters.items():
        layer, _, name = key.partition(":")
        first, second = (linear.weight.detach().clone() for linear in (adapter.linear_in, adapter.linear_out))
        matrices[f"{key}.linear_in.weight"] = first.requires_grad_()
        matrices[f"{key}.linear_out.weight"] = second.requires_grad_()
        updated = [f"{layer}.{LEGACY_NAMES[name]}.weight"]
        if name == "lora_hto4h_adapter" and config["activation"].endswith("glu"):
            updated.append(f"{layer}.dense_h_to_4h_2.weight")
        for weight, part in zip(updated, (1.5 * second @ first).chunk(len(updated)), strict=True):
            weights[weight] = weights[weight] + part
    ids = torch.arange(5, 45)
    wanted = gpt.plain_logits(config, weights, ids)
    positions = torch.arange(40)[None]
    found = base.model(ids[None], positions, AttentionPlan([Group(0, (40,))]))[0]
    torch.testing.assert_close(found, wanted[:, : found.size(1)], rtol=1e-4, atol=1e-4)
    wanted[:, : found.size(1)].log_softmax(-1)[:, 7].mean().backward()
    found.log_softmax(-1)[:, 7].mean().backward()
    assert len(matrices) == 2 * 4 * 2
    for key, tensors in adapters.adapters.items():
        for name, parameter in tensors.named_parameters():
            reference = matrices[f"{key}.{name}"].grad
            assert reference is not None
            assert reference.abs().max() > 1e-3
            torch.testing.assert_close(parameter.grad, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["attention_qkv"], {"lora_kqv_adapter"}),
        (["attention"], {"lora_kqv_adapter", "lora_dense_attention_adapter"}),
        (["mlp", "mlp_fc2"], {"lora_hto4h_adapter", "lora_4htoh_adapter"}),
        (["all"], PROJECTIONS.keys() - {"lora_q_adapter", "lora_kv_adapter"}),
    ],
)
def test_targets_choose_the_projections(targets: list[str], names: set[str], tiny_base: Path) -> None:
    _, adapters = adapted(tiny_base, lora(target_modules=targets))
    assert {key.rpartition(":")[2] for key in adapters.adapters} == names


@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_acts_at_its_position(position: str, tiny_base: Path) -> None:
    """After the update its elements are dropped or doubled; before it no element of the update is unchanged."""
    _, adapters = adapted(tiny_base, lora(adapter_dropout=0.5, dropout_position=position))
    adapter = adapters.adapters["model.language_model.encoder.layers.0.self_attention:lora_kqv_adapter"]
    x = torch.randn(7, 1, 32, generator=torch.Generator().manual_seed(0))
    plain = adapter.eval()(x, x)
    ratio = adapter.train()(x, x) / plain
    kept = torch.isclose(ratio, torch.tensor(2.0)) | (ratio == 0)
    assert kept.all() if position == "post" else not kept.any()


# --- archives -----------------------------------------------------------------------------------------------------


def test_nemos_archive_of_the_scheme_is_read(tiny_base: Path, tmp_path: Path) -> None:
    base, adapters = adapted(tiny_base, lora())
    flat = {
        f"model.decoder.layers.{key.partition('layers.')[2].replace(':', '.adapter_layer.')}.{name}": tensor
        for key, tensors in adapters.state_dict().items()
        for name, tensor in tensors.items()
    }
    assert "model.decoder.layers.1.mlp.adapter_layer.lora_4htoh_adapter.linear_out.weight" in flat
    settings = {"adapter_dim": 4, "alpha": 6, "adapter_dropout": 0.0, "target_modules": ["all"], "weight_tying": False}
    settings |= {"column_init_method": "xavier", "row_init_method": "zero", "position_embedding_strategy": None}
    config = {"peft": {"peft_scheme": "lora", "lora_tuning": settings}, "restore_from_path": str(tiny_base)}
    write_archive(tmp_path / "a.nemo", config, {WEIGHTS_NAME: lambda stream: torch.save(flat, stream)})
    again = load_base(tiny_base)
    loaded, read = load_adapter(tmp_path / "a.nemo", again)
    assert read["adapter_tuning"]["type"] == "lora"
    torch.testing.assert_close(loaded.state_dict(), adapters.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(run(again, "llama"), run(base, "llama"), rtol=0, atol=0)


def test_shards_of_a_gated_feed_forward_are_put_together(tiny_base: Path, tmp_path: Path) -> None:
    """Each of two ranks stores its parts of the gate and of the up-projection next to each other."""
    _, adapters = adapted(tiny_base, lora())
    state = adapters.state_dict()
    ranks: list[dict[str, Tensor]] = [{}, {}]
    for key, tensors in state.items():
        for name, tensor in tensors.items():
            row_parallel = key.endswith(("lora_dense_attention_adapter", "lora_4htoh_adapter"))
            dimension = 1 if name == "linear_in.weight" and row_parallel else 0
            halves = tensor.chunk(2) if key.endswith("hto4h_adapter") and name == "linear_out.weight" else (tensor,)
            for rank, part in enumerate(ranks):
                cut = torch.cat([half.chunk(2, dimension)[rank] for half in halves], dimension)
                part[f"{key.replace(':', '.adapter_layer.')}.{name}"] = cut
    files = {f"mp_rank_0{rank}/{WEIGHTS_NAME}": part for rank, part in enumerate(ranks)}
    peft = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 4, "target_modules": ["all"], "alpha": 6}}
    config = {"peft": peft, "restore_from_path": str(tiny_base), "activation": "fast-swiglu"}
    config |= {"tensor_model_parallel_size": 2}
    write_archive(
        tmp_path / "a.nemo",
        config,
        {n: lambda stream, part=part: torch.save(part, stream) for n, part in files.items()},
    )
    torch.testing.assert_close(read_adapter(tmp_path / "a.nemo")[1], state, rtol=0, atol=0)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter_dim": 0}, "adapter_dim: must be at least 1, not 0"),
        ({"alpha": 0}, "alpha: must be above 0, not 0"),
        ({"dropout_position": "before"}, "dropout_position: the text 'before' is not a choice"),
        ({"target_modules": []}, "target_modules: must not be empty"),
        ({"target_modules": ["attention_kqv"]}, "did you mean 'attention_qkv'?"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        LoraSettings.from_block(lora(**changes)["adapter_tuning"])
    assert words in str(error.value)


def test_two_zero_matrices_learn_nothing_and_are_refused() -> None:
    settings = LoraSettings.from_block(lora(column_init_method="zero")["adapter_tuning"])
    assert [wrong.key for wrong in settings.wrong(1)] == ["column_init_method"]
    assert [wrong.key for wrong in LoraSettings.from_block(lora()["adapter_tuning"]).wrong(3)] == ["adapter_dim"]


# --- PEFT ---------------------------------------------------------------------------------------------------------


def test_logits_and_gradients_equal_pefts(tmp_path: Path) -> None:
    """A Llama with one key head per query head: its logits and the gradients of A and B, at 1e-5."""
    peft = pytest.importorskip("peft", reason="needs peft, which is no dependency: pip install --no-deps peft")
    from transformers import LlamaForCausalLM

    path = tiny_gpt_nemo(tmp_path / "b.nemo", num_key_value_heads=4, initializer_range=0.1)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "b_hf"), config).eval()
    base = load_base(path)
    adapters = AdapterSet(base.model, base.shape, lora(target_modules=["attention_dense", "mlp_fc2"]))
    names = {"lora_dense_attention_adapter": "self_attn.o_proj", "lora_4htoh_adapter": "mlp.down_proj"}
    pairs = []
    for key, adapter in adapters.adapters.items():
        layer = theirs.get_submodule(f"base_model.model.model.layers.{key.split('layers.')[1][0]}")
        module = layer.get_submodule(names[key.rpartition(":")[2]])
        pairs += [(adapter.linear_in.weight, module.lora_A["default"].weight)]
        pairs += [(adapter.linear_out.weight, module.lora_B["default"].weight)]
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other)
    ids = torch.arange(5, 45)[None]
    torch.testing.assert_close(logits_of(base, ids), theirs(ids).logits[..., : base.shape.vocab_size].detach(), **EXACT)
    positions = torch.arange(40)[None]
    base.model(ids, positions, AttentionPlan([Group(0, (40,))])).log_softmax(-1)[..., 7].mean().backward()
    theirs(ids).logits[..., : base.shape.vocab_size].log_softmax(-1)[..., 7].mean().backward()
    assert len(named_gradients(adapters)) == len(pairs) == 8
    for mine, other in pairs:
        assert other.grad.abs().max() > 1e-4
        torch.testing.assert_close(mine.grad, other.grad, **EXACT)
