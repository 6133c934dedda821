# SPDX-License-Identifier: Apache-2.0
"""The verbs give NVIDIA's own tokens and losses for archives that NeMo 1.20 wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import oracle, t5
from tests.cli.conftest import Run
from tests.engine import write_jsonl
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def archives(name: str) -> list[str]:
    """Return the options with a case's archives, which contain paths of NVIDIA's machine."""
    family = "t5" if "_t5" in name else "gpt"
    base = shared_path(f"oracle/base_{family}{name.partition(f'_{family}')[2]}.nemo")
    return ["--base", str(base), "--adapter", str(shared_path(f"oracle/{name}.nemo"))]


@pytest.mark.parametrize("name", ["adapter_gpt", "linear_gpt", "ia3_gpt"])
def test_gpt_tokens_are_nemos(name: str, run: Run, tmp_path: Path) -> None:
    """NeMo decodes a batch to one length, so its shorter prompts got more tokens than requested."""
    stored = oracle.load(f"generate_{name}")
    data = write_jsonl(tmp_path / "prompts.jsonl", stored["prompts"])
    found = run("generate", *archives(name), "--jsonl", data, "--tokens-to-generate", "10").lines
    lengths = stored["input_lengths"].tolist()
    wanted = [row[length : length + 10] for row, length in zip(stored["token_ids"], lengths, strict=True)]
    assert [line["token_ids"] for line in found] == wanted
    assert [line["premise"] for line in found] == [prompt["premise"] for prompt in stored["prompts"]]


@pytest.mark.parametrize("kind", t5.KINDS)
def test_t5_tokens_and_texts_are_nemos(kind: str, run: Run, tmp_path: Path) -> None:
    stored = t5.load_case(f"generate_{kind}_t5")
    data = write_jsonl(tmp_path / "prompts.jsonl", stored["prompts"])
    length = stored["pred_ids"].size(1) - 1
    settings = ["--set", "nemo_compat=True", "--set", f"decoder_seq_length={length}"]
    found = run("generate", *archives(f"{kind}_t5"), "--jsonl", data, *settings).lines
    assert [line["token_ids"] for line in found] == stored["pred_ids"][:, 1:].tolist()
    assert [line["prediction"] for line in found] == [text.strip() for text in stored["preds_text"]]


@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("name", [*oracle.GPT_CASES, *t5.CASES])
def test_losses_are_nemos(name: str, batch_size: str, run: Run, tmp_path: Path) -> None:
    case = oracle.load(name)
    data = write_jsonl(tmp_path / "rows.jsonl", case["rows"][:4])
    found = run("score", *archives(name), data, "--batch-size", batch_size).lines
    mask = case["batch"]["loss_mask"]
    sums = (case["token_loss"].double() * mask).sum(-1).tolist()
    assert [line["nll_sum"] for line in found] == pytest.approx(sums, rel=1e-5)
    assert [line["answer_tokens"] for line in found] == mask.sum(-1).int().tolist()
    assert [line["nll_mean"] for line in found] == [line["nll_sum"] / line["answer_tokens"] for line in found]
    assert sum(line["nll_sum"] for line in found) / float(mask.sum()) == pytest.approx(float(case["loss"]), rel=1e-5)


@pytest.mark.parametrize("name", ["adapter_gpt", "linear_gpt", "ia3_gpt", "adapter_t5", "linear_t5", "ia3_t5"])
def test_archives_of_two_ranks_give_the_same_losses(name: str, run: Run, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", oracle.load(name)["rows"][:4])
    one = run("score", *archives(name), data).lines
    two = run("score", *archives(f"{name}_tp2"), data).lines
    assert [line["nll_sum"] for line in two] == pytest.approx([line["nll_sum"] for line in one], rel=1e-5)
