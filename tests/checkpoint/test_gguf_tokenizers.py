# SPDX-License-Identifier: Apache-2.0
"""Token ids of GGUF files of Gemma, Phi-3 and Qwen3: those of SentencePiece and of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import Gemma3TextConfig, Phi3Config, Qwen3Config

from nemo_launcher.checkpoint.gguf_tokens import AS_LLAMA_CPP
from nemo_launcher.conversion.convert import convert
from nemo_launcher.conversion.probe import TEXTS
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.requirements import is_at_least
from tests.checkpoint.conversions import sentencepiece_model
from tests.gguf_files import TOKENS
from tests.gguf_models import SIZES, random_model, write_model
from tests.versions import needs_transformers

pytestmark = pytest.mark.unit

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
SIZE = {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8}
SMALL = {**SIZES, "num_hidden_layers": 1}


def vocabulary(own: sentencepiece.SentencePieceProcessor, more: Sequence[str], prefix: bool) -> dict[str, Any]:
    """Return the metadata of a vocabulary and more control tokens, as llama.cpp's converter writes them."""
    numbers = range(own.vocab_size())
    tokens = [own.id_to_piece(number) for number in numbers]
    kinds = [
        2 if own.is_unknown(n) else CONTROL if own.is_control(n) else 6 if own.is_byte(n) else NORMAL for n in numbers
    ]
    spaces = [number for number in numbers if len(tokens[number]) > 1 and not tokens[number].strip("\u2581")]
    for number in (*spaces, *(number for number in numbers if tokens[number] in ("\n\n", "<think>"))):
        tokens[number], kinds[number] = tokens[number].replace("\u2581", " "), USER_DEFINED
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [*tokens, *more],
        "tokenizer.ggml.scores": [float(own.get_score(number)) for number in numbers] + [-1000.0] * len(more),
        "tokenizer.ggml.token_type": [*kinds, *(CONTROL for _ in more)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def read(folder: Path, kind: str, config: Any, keys: dict[str, Any]) -> tuple[Tokenizer, Any]:
    """Convert a model with these keys; return its tokenizer and that of transformers."""
    from transformers import AutoTokenizer

    write_model(folder / "m.gguf", random_model(config), kind, keys)
    convert(folder / "m.gguf", folder / "base.nemo")
    return load_base(folder / "base.nemo").tokenizer, AutoTokenizer.from_pretrained(folder, gguf_file="m.gguf")


def ids(theirs: Any, text: str) -> list[int]:
    return list(theirs.encode(text, add_special_tokens=False))


@needs_transformers(AS_LLAMA_CPP, "reads its tokenizer with other settings")
def test_gemma(tmp_path: Path) -> None:
    marks = ["\u2581" * length for length in range(2, 6)]
    own = sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=[*marks, "\n\n", "<think>"])
    keys = vocabulary(own, ["<start_of_turn>"], prefix=False)
    rows = len(keys["tokenizer.ggml.tokens"])
    config = Gemma3TextConfig(**{**SMALL, "vocab_size": rows}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
    ours, theirs = read(tmp_path, "gemma3", config, {**SIZE, **keys, "rope.freq_base": 1e6})
    for text in (*TEXTS, "  near\n\nthe   river     ", "a<think>b", "ż\t😀"):
        assert ours.text_to_ids(text) == own.encode(text) == ids(theirs, text), text
    turn = rows - 1
    assert ours.text_to_ids("near<start_of_turn> river") == [*own.encode("near"), turn, *own.encode(" river")]
    assert ours.ids_to_text(ours.text_to_ids("  near  the\n\nriver")) == "  near  the\n\nriver"


@needs_transformers(AS_LLAMA_CPP, "reads its tokenizer with other settings")
def test_phi3(tmp_path: Path) -> None:
    """Its special tokens take the spaces behind them, except the first three: not so in transformers' reading."""
    own = sentencepiece_model()
    keys = vocabulary(own, ["<|endoftext|>", "<|user|>", "<|end|>"], prefix=True)
    rows = len(keys["tokenizer.ggml.tokens"])
    ours, theirs = read(
        tmp_path, "phi3", Phi3Config(**{**SMALL, "vocab_size": rows}), {**keys, "attention.sliding_window": 0}
    )
    for text in (*TEXTS, "<|user|>near", "a<s> b"):
        assert ours.text_to_ids(text) == ids(theirs, text), text
    for text in ("near the river", " near"):
        assert ours.text_to_ids(text) == own.encode(text), text
    endoftext, user, end = range(rows - 3, rows)
    near = own.encode("near")
    assert ours.text_to_ids("<|user|>\n near<|end|>\n") == [user, *near, end]
    assert ours.text_to_ids("<|endoftext|> near") == [endoftext, *own.encode(" near")]


@needs_transformers(AS_LLAMA_CPP, "splits texts otherwise")
@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "gpt-4o"])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    keys = {"attention.key_length": 16, "attention.value_length": 16, "tokenizer.ggml.pre": pre}
    ours, theirs = read(tmp_path, "qwen3", Qwen3Config(**SMALL, head_dim=16), keys)
    for text in (*TEXTS, "12312 t<pad>t"):
        assert ours.text_to_ids(text) == ids(theirs, text), text


@needs_transformers(AS_LLAMA_CPP, "splits texts otherwise")
def test_a_word_that_is_a_token_needs_no_merges(tmp_path: Path) -> None:
    """Llama 3's tokenizer has ignore_merges; a GGUF file has merges that do not lead to every token."""
    found = {}
    tokens = [*TOKENS[:-1], "own"]
    for pre in ("llama-bpe", "qwen2"):
        folder = tmp_path / pre
        folder.mkdir()
        keys = {"attention.key_length": 16, "attention.value_length": 16, "tokenizer.ggml.pre": pre}
        keys |= {"tokenizer.ggml.tokens": tokens}
        ours, _ = read(folder, "qwen3", Qwen3Config(**SMALL, head_dim=16), keys)
        found[pre] = ours.text_to_ids("own")
    assert found == {"llama-bpe": [len(tokens) - 1], "qwen2": [tokens.index(letter) for letter in "own"]}


@pytest.mark.skipif(is_at_least("transformers", AS_LLAMA_CPP), reason="transformers reads them as llama.cpp does")
@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
def test_what_an_older_transformers_reads_otherwise_is_refused(pre: str, tmp_path: Path) -> None:
    keys = {"attention.key_length": 16, "attention.value_length": 16, "tokenizer.ggml.pre": pre}
    with pytest.raises(UserError, match=rf"the tokenizer of .{pre}. differently.*\n.*install transformers 5\.18"):
        read(tmp_path, "qwen3", Qwen3Config(**SMALL, head_dim=16), keys)
