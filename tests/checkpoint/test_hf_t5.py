# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face's T5 models to NeMo checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, read_config
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.families.t5.model import Row
from nemo_launcher.requirements import is_transformers_5
from tests import t5
from tests.versions import load_t5

pytestmark = pytest.mark.unit

MODELS: dict[str, dict[str, Any]] = {
    "v1.0": {"tied": True, "feed_forward_proj": "relu"},
    "v1.1": {"tied": False, "feed_forward_proj": "gated-gelu"},
    "mt5": {"kind": "MT5", "tied": False, "feed_forward_proj": "gated-gelu"},
    "umt5": {"kind": "UMT5", "tied": False, "feed_forward_proj": "gated-gelu"},
    "umt5-tied": {"kind": "UMT5", "tied": True, "feed_forward_proj": "relu", "num_decoder_layers": 2},
    "silu": {"tied": False, "feed_forward_proj": "gated-silu", "num_layers": 3, "num_decoder_layers": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = t5.save_t5(tmp_path / "hf", **MODELS[name])
    convert(folder, tmp_path / "base.nemo")
    base, theirs = load_base(tmp_path / "base.nemo"), load_t5(folder)
    if MODELS[name].get("kind") == "UMT5":
        theirs.config.tie_word_embeddings = MODELS[name]["tied"]  # transformers 5 scales every UMT5's output
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 72, (1, 60), generator=generator)
    with torch.no_grad():
        for length, decoder_length in ((40, 20), (7, 1), (3, 5)):
            prompt, answer = tokens[:, :length], tokens[:, 40 : 40 + decoder_length]
            wanted = theirs(input_ids=prompt, decoder_input_ids=answer).logits[0]
            found = base.model.logits_of(base.model(Row(prompt, [length]), Row(answer, [decoder_length])))
            assert wanted.abs().max() > (0.5 if is_transformers_5() else 0.3)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_archive_is_laid_out_as_nemos(name: str, tmp_path: Path) -> None:
    path = t5.tiny_base(tmp_path / "base.nemo", **MODELS[name])
    with Archive(path) as archive:
        stored, config = read_tensors(archive, WEIGHTS_NAME), archive.config()
    layer = "enc_dec_model.enc_dec_model.decoder.model.layers.0."
    gated = MODELS[name]["feed_forward_proj"] != "relu"
    assert (f"{layer}mlp.dense_h_to_4h_2.weight" in stored) == gated
    assert stored[f"{layer}mlp.dense_h_to_4h.weight"].shape == (40, 24)
    assert stored[f"{layer}inter_attention.key_value.weight"].shape == (36, 24)
    embeddings = [stored[f"enc_dec_model.{stack}_embedding.word_embeddings.weight"] for stack in ("encoder", "decoder")]
    assert torch.equal(*embeddings)
    assert ("enc_dec_model.tokens_head.weight" in stored) != MODELS[name]["tied"]
    assert config["share_decoder_tokens_head_embeddings"] == MODELS[name]["tied"]
    assert config["target"].endswith("MegatronT5Model")
    assert config["tokenizer"]["num_sentinel_tokens"] == 10


def test_the_tokenizer_travels_inside(tmp_path: Path) -> None:
    tokenizer = load_base(t5.tiny_base(tmp_path / "base.nemo")).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 0)
    sentinel = tokenizer.token_to_id("<extra_id_0>")
    assert sentinel is not None
    assert tokenizer.token_to_id("<extra_id_10>") is None
    ids = tokenizer.text_to_ids("ab c<extra_id_0>")
    assert ids[-1] == sentinel
    assert tokenizer.ids_to_text([*ids, 1]) == "ab c"


def test_bf16_keeps_the_scale_of_the_original_t5(tmp_path: Path) -> None:
    path = tmp_path / "base.nemo"
    convert(t5.save_t5(tmp_path / "hf", tied=True), path, "bf16")
    assert read_config(path)["precision"] == "bf16"
    exact = load_base(t5.tiny_base(tmp_path / "exact.nemo", tied=True))
    samples = t5.random_samples(2)
    difference = t5.logits_of(load_base(path), samples) - t5.logits_of(exact, samples)
    assert difference.abs().max() < 0.1 * t5.logits_of(exact, samples).abs().max()


def test_what_is_not_carried_over_is_refused(tmp_path: Path) -> None:
    folder = t5.save_t5(tmp_path / "hf", feed_forward_proj="gelu")
    with pytest.raises(UserError, match="feed_forward_proj 'gelu'"):
        convert(folder, tmp_path / "base.nemo")
    assert not (tmp_path / "base.nemo").exists()
