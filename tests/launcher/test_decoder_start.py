# SPDX-License-Identifier: Apache-2.0
"""A T5 whose decoder has no token to start with is refused at launch, as its job would refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.archives import GPT, write_archive
from tests.workplace import Launch, Workplace

pytestmark = pytest.mark.unit

FOLDER = {"library": "huggingface", "type": "nemo:tokenizer"}
CONFIG = {"encoder": GPT, "decoder": GPT, "max_position_embeddings": 512, "tokenizer": FOLDER}
KEY = "adapter_learning.model.data.decoder_starts_with_pad"
REFUSED = f"++{KEY}=True"


def launched(launch: Launch, workplace: Workplace, tokenizer: dict[str, Any] | bytes, *given: str) -> Any:
    content = tokenizer if isinstance(tokenizer, bytes) else json.dumps(tokenizer).encode()
    base = workplace.root / "t5.nemo"
    write_archive(base, CONFIG, {"model_weights.ckpt": b"weights", "tokenizer/tokenizer_config.json": content})
    arguments = [text for text in workplace.arguments if not text.startswith(("stages", "adapter_learning"))]
    chosen = ["stages=[adapter_learning]", "adapter_learning=t5/squad"]
    return launch(*arguments, *chosen, f"adapter_learning.model.language_model_path={base}", *given, "debug=True")


def test_no_bos_is_refused_and_the_fix_is_accepted(launch: Launch, workplace: Workplace) -> None:
    tokenizer = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>"}
    refused = launched(launch, workplace, tokenizer)
    assert refused.status == 2
    assert REFUSED in refused.err
    fixed = launched(launch, workplace, tokenizer, REFUSED)
    assert fixed.status == 0, fixed.err


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"tokenizer_class": "T5Tokenizer", "bos_token": "<s>"},
        {"tokenizer_class": "BartTokenizer"},
        ["T5Tokenizer"],
        b"{",
    ],
)
def test_a_tokenizer_that_may_have_bos_is_left_to_the_job(tokenizer: Any, launch: Launch, workplace: Workplace) -> None:
    result = launched(launch, workplace, tokenizer)
    assert result.status == 0, result.err


def test_the_source_of_a_conversion_in_the_same_chain_is_read(
    launch: Launch, workplace: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "t5"
    source.mkdir()
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5TokenizerFast"}))
    given = ["stages=[conversion_hf2nemo,adapter_learning]", "conversion_hf2nemo=hf_t5", "adapter_learning=t5/squad"]
    given += [f"conversion_hf2nemo.model.hf_model_path={source}", "conversion_hf2nemo.run.model_train_name=t5_220m"]
    arguments = [text for text in workplace.arguments if not text.startswith(("stages", "adapter_learning"))]
    assert REFUSED in launch(*arguments, *given, "debug=True").err
