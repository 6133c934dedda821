# SPDX-License-Identifier: Apache-2.0
"""GGUF files of each architecture give the numbers of the model that they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_launcher.checkpoint.gguf_architectures import GGUF_ARCHITECTURES
from nemo_launcher.checkpoint.gguf_file import GGUFKeys, read_gguf
from nemo_launcher.conversion.convert import convert
from tests.engine import logits_of
from tests.gguf_cases import CASES, PLAIN, heads, window, written
from tests.gguf_files import write_gguf

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", PLAIN | CASES)
def test_logits_are_those_of_the_model_and_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "m.gguf"
    model = written((PLAIN | CASES)[name], path)
    convert(path, tmp_path / "base.nemo")
    read = {} if name in PLAIN else {"config": model.config}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, attn_implementation="eager", **read)
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        wanted, found = model(ids).logits, theirs(ids).logits
    ours = logits_of(tmp_path / "base.nemo", ids)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)
    if name != "llama_biases":  # transformers leaves them out
        torch.testing.assert_close(ours, found, rtol=0, atol=1e-4)


def test_longrope_is_limited_to_the_original_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(CASES["phi3_longrope"], tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "base.nemo")
    assert "sequences are limited to 64 tokens (instead of 256)" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_models_of_27b_are_scaled_by_the_width_of_a_head(kind: str, layers: int, tmp_path: Path) -> None:
    """These have heads of another size than hidden / heads; a file does not say what scales their scores."""
    for number, scale in ((layers, 1024 // 4), (layers + 1, 128)):
        keys = {"block_count": number, "embedding_length": 1024, "rope.freq_base": 1e6, **heads(128), **window(8)}
        path = write_gguf(tmp_path / f"{number}.gguf", {f"{kind}.{k}": v for k, v in keys.items()}, architecture=kind)
        file = read_gguf(path)
        own = GGUF_ARCHITECTURES[kind].attention
        assert own is not None
        assert own(GGUFKeys(file, kind), 128)["query_pre_attn_scalar"] == scale
