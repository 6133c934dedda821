# SPDX-License-Identifier: Apache-2.0
"""The frozen T5 compared with NVIDIA's results, and checks of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.families.t5 import layouts as t5_layouts
from nemo_launcher.families.t5.model import Row, build_t5
from nemo_launcher.families.t5.shape import T5Shape
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.sizes import ONE_RANK
from tests import t5
from tests.shared import shared_path

pytestmark = pytest.mark.unit

SECTION = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 2}


def _shape(section: dict[str, Any] | None = None, **model: Any) -> T5Shape:
    both = SECTION | (section or {})
    config = {"max_position_embeddings": 40, "encoder": both, "decoder": both} | model
    return T5Shape.from_config(config, vocab_size=64, source="base.nemo")


def _random_model(shape: T5Shape, seed: int = 0) -> Any:
    parallel.initialize(ONE_RANK)
    model = build_t5(shape)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return model


def _rows(lengths: list[int], seed: int = 1) -> Row:
    tokens = torch.randint(0, 64, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    return Row(tokens, lengths)


def _alone(row: Row, index: int) -> Row:
    start = sum(row.lengths[:index])
    return Row(row.tokens[:, start : start + row.lengths[index]], [row.lengths[index]])


# --- NVIDIA's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", t5.CASES)
@pytest.mark.parametrize("part", ["batch", "fixed"])
def test_logits_loss_and_gradients_are_nvidias(name: str, part: str) -> None:
    case, base, _ = t5.adapted(name)
    wanted = case["fixed"] if part == "fixed" else case
    samples, mask = t5.batch_samples(wanted["batch"]), wanted["batch"]["loss_mask"].bool()
    frozen = t5.frozen_base(name)
    torch.testing.assert_close(t5.logits_of(frozen, samples), wanted["base_logits"][mask], rtol=0, atol=5e-6)
    torch.testing.assert_close(t5.logits_of(base, samples), wanted["logits"][mask], rtol=0, atol=5e-6)
    loss, gradients = t5.loss_and_gradients(base, samples)
    assert loss == pytest.approx(float(wanted["loss"]), abs=2e-6)
    torch.testing.assert_close(gradients, dict(wanted["grads"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["adapter_t5", "linear_t5", "ia3_t5_hft5"])
def test_micro_batches_are_nemos(name: str) -> None:
    case, base, _ = t5.adapted(name)
    samples = t5.examples(case)[:4]
    loss, gradients = t5.loss_and_gradients(base, samples, micro_batch_size=2, nemo_compat=True)
    assert loss == pytest.approx(float(case["accum"]["loss_mean"]), abs=2e-6)
    torch.testing.assert_close(gradients, dict(case["accum"]["grads"]), rtol=0, atol=2e-6)
    by_token, _ = t5.loss_and_gradients(base, samples, micro_batch_size=2)
    whole, _ = t5.loss_and_gradients(base, samples)
    assert by_token == pytest.approx(whole, rel=1e-6)


# --- packing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ({}, {}),
        ({"position_embedding_type": "relative", "relative_attention_num_buckets": 8}, {"tokens_head_bias": False}),
        (
            {"position_embedding_type": "relative", "relative_position_bias_self_attention_only": False},
            {"share_token_embeddings": False, "share_decoder_tokens_head_embeddings": False},
        ),
        ({"activation": "swiglu", "bias": False, "normalization": "rmsnorm", "kv_channels": 5}, {}),
    ],
)
def test_a_packed_sample_is_computed_as_if_it_were_alone(section: dict[str, Any], model: dict[str, Any]) -> None:
    frozen = _random_model(_shape(section, **model))
    encoder_row, decoder_row = _rows([7, 12, 3, 9]), _rows([4, 1, 8, 5], seed=2)
    with torch.no_grad():
        together = frozen(encoder_row, decoder_row).split(list(decoder_row.lengths))
        for index, logits in enumerate(together):
            alone = frozen(_alone(encoder_row, index), _alone(decoder_row, index))
            torch.testing.assert_close(logits, alone, rtol=0, atol=2e-5)


def test_packing_changes_no_gradient(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo"))
    AdapterSet(base.model, base.shape, {"adapter_tuning": t5.BOTTLENECK})
    samples = t5.random_samples(5)
    loss, gradients = t5.loss_and_gradients(base, samples)
    loss_alone, gradients_alone = t5.loss_and_gradients(base, samples, micro_batch_size=1)
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    torch.testing.assert_close(gradients, gradients_alone, rtol=1e-3, atol=2e-5)


# --- configuration ----------------------------------------------------------------------------------------------


def test_cross_attention_bias_depends_on_relative_positions_alone() -> None:
    """Its table changes cross-attention; a table of equal rows does not, as softmax ignores a constant."""
    relative = {"position_embedding_type": "relative"}
    shape = _shape(relative | {"relative_position_bias_self_attention_only": False})
    frozen, without = _random_model(shape), _random_model(_shape(relative))
    without.load_state_dict(frozen.state_dict(), strict=False)
    rows = _rows([9, 6]), _rows([3, 5], seed=2)
    with torch.no_grad():
        assert (frozen(*rows) - without(*rows)).abs().max() > 1e-2
        frozen.cross_relative_positions.relative_attention_bias.weight.fill_(1.5)
        torch.testing.assert_close(frozen(*rows), without(*rows), rtol=0, atol=2e-5)


def test_the_flat_older_configuration_says_the_same() -> None:
    flat = T5Shape.from_config(SECTION | {"max_position_embeddings": 40}, vocab_size=64, source="base.nemo")
    assert flat == _shape()


def test_sections_may_differ() -> None:
    shape = T5Shape.from_config(
        {"seq_length": 40, "encoder": SECTION, "decoder": SECTION | {"num_layers": 1, "num_attention_heads": 4}},
        vocab_size=64,
        source="base.nemo",
    )
    assert (shape.encoder.num_layers, shape.decoder.num_layers) == (2, 1)
    assert shape.decoder.kv_channels == 4
    assert shape.decoder_seq_length == 40


def test_all_that_is_wrong_in_a_configuration_is_named_at_once() -> None:
    section = {"num_layers": None, "activation": "gelo", "transformer_block_type": "post_ln"}
    with pytest.raises(UserError) as error:
        _shape(section, max_position_embeddings=None)
    message = str(error.value)
    for part in ("encoder: num_layers", "decoder: num_layers", "'gelo'", "did you mean 'gelu'", "'post_ln'"):
        assert part in message
    assert "max_position_embeddings" in message


# --- checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", "_hft5"])
def test_stored_names_go_both_ways(variant: str) -> None:
    with Archive(shared_path(f"oracle/base_t5{variant}.nemo")) as archive:
        stored = read_tensors(archive, WEIGHTS_NAME)
        base_config = archive.config()
    model = load_base(shared_path(f"oracle/base_t5{variant}.nemo")).model
    weights: dict[str, Tensor] = dict(model.named_parameters())
    gated = base_config["encoder"]["activation"] == "geglu"
    again = t5_layouts.to_stored(weights, separate_gates=gated, share_token_embeddings=True)
    again = {name: weight.detach() for name, weight in again.items()}
    torch.testing.assert_close(again, dict(stored), rtol=0, atol=0)


def test_a_checkpoint_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    path = t5.tiny_base(tmp_path / "base.nemo")
    with pytest.raises(UserError, match=r"is a T5 checkpoint, but the stage is for GPT \(llama\)"):
        load_base(path, family="llama")
    with pytest.raises(UserError, match="did you mean 'llama'"):
        load_base(path, family="lama")
    assert load_base(path, family="t5").family.name == "t5"


def test_a_gpt_is_no_t5() -> None:
    path = shared_path("oracle/base_gpt.nemo")
    assert load_base(path).family.name == "gpt"
    with pytest.raises(UserError, match=r"is a GPT checkpoint, but the stage is for T5 \(t5\)"):
        load_base(path, family="t5")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = t5.tiny_base(tmp_path / "base.nemo")
    with Archive(path) as archive:
        config, stored = archive.config(), read_tensors(archive, WEIGHTS_NAME)
        tokenizer: dict[str, Any] = {
            name: archive.open(name).read() for name in archive.names if name.startswith("tokenizer/")
        }
    layer = "enc_dec_model.enc_dec_model.decoder.model.layers.1."
    stored[f"{layer}inter_attention.quary.weight"] = stored.pop(f"{layer}inter_attention.query.weight")
    members = tokenizer | {WEIGHTS_NAME: lambda stream: torch.save(stored, stream)}
    write_archive(tmp_path / "wrong.nemo", config, members)
    with pytest.raises(UserError, match=r"1 weights are not this family's: .*quary"):
        load_base(tmp_path / "wrong.nemo")
    del stored[f"{layer}inter_attention.quary.weight"]
    write_archive(tmp_path / "wrong.nemo", config, members)
    with pytest.raises(UserError, match=r"decoder.layers.1.cross_attention.linear_q.weight: is absent"):
        load_base(tmp_path / "wrong.nemo")
