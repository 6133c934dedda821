# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of converted models: the source's ids, no code from the folder, one-line errors for damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.checkpoint.conversions import changed, sentencepiece_model
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(tied: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": r"\p{N}{1,3}(?=(\p{N}{3})*(?!\p{N}))|\s|\P{N}"}
    splits = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [splits, content["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "near the river near the river 2023"
    assert tokenizer.text_to_ids(text) == own.encode(text, add_special_tokens=False).ids
    assert len(tokenizer.text_to_ids(text)) == len(text)  # GPT2Tokenizer would split like GPT-2
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_space_before_each_text_is_kept(named: str, tied: Path, tmp_path: Path) -> None:
    """Classes of transformers 4 follow `add_prefix_space` of tokenizer_config.json, which is false by default."""
    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    assert tokenizer.text_to_ids("river") == tokenizer.text_to_ids(" river")


@pytest.mark.parametrize("case", ["pad_token_added", "tokenizer_pretok"])
def test_cases_that_are_converted(case: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = shared_path(f"cases/{case}")
    convert(source, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    own = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in ("In 2023 and 12345", "[PAD]", "héé 北京\n\t 😀"):
        assert tokenizer.text_to_ids(text) == own.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("added", [False, True])
def test_sentencepiece_keeps_its_mark_before_the_text(added: bool, tied: Path, tmp_path: Path) -> None:
    own = sentencepiece_model()
    folder = shutil.copytree(tied, tmp_path / "hf", ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))
    (folder / "tokenizer.model").write_bytes(own.serialized_model_proto())
    if added:
        (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": own.vocab_size()}))
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    convert(folder, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    for text in ("near the river", " near  the\n\triver 2023", "ż北😀"):
        assert tokenizer.text_to_ids(text) == own.encode(text)
    assert tokenizer.ids_to_text(tokenizer.text_to_ids("near the river")) == "near the river"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == (own.vocab_size() if added else None)


def test_tokens_added_behind_the_embedding_get_the_mean_row(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load_file(tied / "model.safetensors")["model.embed_tokens.weight"].size(0)
    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number in range(len(content["model"]["vocab"]), rows + 1):
        content["added_tokens"].append({"id": number, "content": f"<x{number}>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    convert(folder, tmp_path / "base.nemo")
    assert "1 rows are added to the embedding" in capsys.readouterr().out
    base = load_base(tmp_path / "base.nemo")
    assert (base.tokenizer.vocab_size, base.shape.vocab_size) == (rows + 1, rows + 1)
    embedding = base.model.embedding.word_embeddings.weight
    torch.testing.assert_close(embedding[-1], embedding[:-1].mean(0))


def test_a_tokenizer_of_another_model_is_refused(tied: Path, tmp_path: Path) -> None:
    folder = changed(
        tied,
        tmp_path / "hf",
        lambda weights: weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:300].clone()},
        vocab_size=300,
    )
    with pytest.raises(UserError, match=r"354 tokens, but the embedding has 300 rows\n.*the model's own"):
        convert(folder, tmp_path / "base.nemo")


def test_code_of_a_folder_is_neither_run_nor_asked_for(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    folder = changed(tied, tmp_path / "hf", lambda weights: weights, auto_map=code)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "base.nemo")
    assert "auto_map is ignored" in capsys.readouterr().out
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(UserError, match="OwnTokenizer"):
        convert(folder, tmp_path / "other.nemo")
    assert not (tmp_path / "executed").exists()


TOKENIZERS: dict[str, tuple[Any, str]] = {
    "id_beyond_bounds": (
        lambda content: content["model"]["vocab"].update(x=10**9),
        "1000000000 is not a token id",
    ),
    "id_of_text": (lambda content: content["model"]["vocab"].update(x="1"), "is not a token id"),
    "no_mapping": (lambda content: [content], "is a list, not a tokenizer"),
    "merge_without_tokens": (lambda content: content["model"]["merges"].append(["qqq", "zzz"]), "cannot be read"),
    "prefix_longer_than_tokens": (
        lambda content: content["model"].update(continuing_subword_prefix="#" * 10),
        "cannot be read",  # the library panics
    ),
}


@pytest.mark.parametrize(("change", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer_is_told_in_one_line(
    change: Any, words: str, tied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    result = change(content)
    (folder / "tokenizer.json").write_text(json.dumps(result if isinstance(result, list) else content))
    with pytest.raises(UserError, match=words):
        convert(folder, tmp_path / "base.nemo")
    assert "panicked" not in capfd.readouterr().err
