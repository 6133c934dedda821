# SPDX-License-Identifier: Apache-2.0
"""GGUF files: their content is converted, or refused with a message."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from nemo_launcher.checkpoint.archive import read_config
from nemo_launcher.checkpoint.gguf_file import BLOCKS, read_gguf
from nemo_launcher.checkpoint.gguf_model import read_model
from nemo_launcher.checkpoint.gguf_tokens import AS_LLAMA_CPP
from nemo_launcher.checkpoint.sources import check_source, source_problem
from nemo_launcher.conversion.convert import convert
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.checkpoint.conversions import assert_refused, sentencepiece_model
from tests.engine import logits_of
from tests.gguf_files import SIZE, TOKENS, tensors, write_gguf
from tests.shared import shared_path
from tests.versions import needs_transformers

pytestmark = pytest.mark.unit

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def llama3_factors(base: float = 10000.0) -> np.ndarray[Any, Any]:
    """Return the values that llama.cpp's converter writes as rope_freqs.weight."""
    factors = []
    for frequency in (base ** (-2 * number / SIZE) for number in range(SIZE // 2)):
        length = 2 * math.pi / frequency
        kept = (64 / length - 1.0) / (4.0 - 1.0)
        factors.append(1.0 if length < 64 / 4 else 8.0 if length > 64 else 1 / ((1 - kept) / 8 + kept))
    return np.array(factors, dtype=np.float32)


def test_headers_are_those_of_gguf_py(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    found, wanted = read_gguf(path), gguf.GGUFReader(path)
    for tensor in wanted.tensors:
        own = found.tensors[tensor.name]
        place = (tensor.data_offset, tensor.n_bytes, tuple(tensor.shape[::-1].tolist()))
        assert (own.offset, own.num_bytes, own.shape) == place
    assert {key: field.contents() for key, field in wanted.fields.items() if "GGUF" not in key} == found.metadata
    for number, (name, *sizes) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, tuple(sizes))


def with_metadata(**metadata: Any) -> Callable[[Path], object]:
    return lambda path: write_gguf(path, {key.replace("__", "."): value for key, value in metadata.items()})


def cut(part: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def with_a_text_of(size: int) -> Callable[[Path], object]:
    """Write a sparse file whose first key claims this length."""

    def change(path: Path) -> None:
        path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, size))
        os.truncate(path, size + 1000)

    return change


WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut_off": (cut(0.9), ["truncated"]),
    "cut_in_metadata": (cut(0.01), ["truncated"]),
    "text_of_4_gb": (with_a_text_of(4 << 30), ["claims more than", "bytes of metadata"]),
    "empty": (cut(0), ["is empty"]),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), ["Git LFS pointer"]),
    "other_file": (lambda path: path.write_bytes(b"PK" * 99), ["not a GGUF file"]),
    "architecture": (lambda path: write_gguf(path, architecture="gemma4"), ["gemma4 is not supported", "llama, qwen2"]),
    "architectures": (with_metadata(general__architecture=["llama"]), ["['llama'] is not supported"]),
    "part": (with_metadata(split__count=2, split__no=0), ["part 1 of 2", "llama-gguf-split --merge"]),
    "adapter": (lambda path: write_gguf(path, {"general.type": "adapter"}), ["its type is 'adapter', not a model"]),
    "yarn": (lambda path: write_gguf(path, {"llama.rope.scaling.type": "yarn"}), ["'yarn' is not supported"]),
    "experts": (lambda path: write_gguf(path, {"llama.expert_count": 8}), ["llama.expert_count"]),
    "window": (with_metadata(llama__attention__sliding_window=64), ["llama.attention.sliding_window"]),
    "partial_rotary": (
        with_metadata(llama__rope__dimension_count=8, llama__attention__key_length=16),
        ["rope.dimension_count"],
    ),
    "no_eps": (lambda path: write_gguf(path, {"llama.attention.layer_norm_rms_epsilon": None}), ["rms_epsilon"]),
    "pre": (lambda path: write_gguf(path, {"tokenizer.ggml.pre": "my-own"}), ["tokenizer.ggml.pre", "'my-own'"]),
    "eos": (lambda path: write_gguf(path, {"tokenizer.ggml.eos_token_id": 10**6}), ["eos_token_id", "1000000"]),
    "scores": (
        lambda path: write_gguf(path, {"tokenizer.ggml.scores": [float("nan")] * len(TOKENS)}),
        ["tokenizer.ggml.scores", "not finite"],
    ),
    "whitespace": (
        with_metadata(tokenizer__ggml__remove_extra_whitespaces=True),
        ["tokenizer.ggml.remove_extra_whitespaces", "'True' is not supported"],
    ),
    "charsmap": (
        with_metadata(tokenizer__ggml__precompiled_charsmap=[1, 2]),
        ["tokenizer.ggml.precompiled_charsmap", "not supported"],
    ),
    "token_twice": (lambda path: write_gguf(path, tokens=[*TOKENS, "12"]), ["'12' occurs twice"]),
    "tensor_of_no_use": (
        lambda path: write_gguf(path, None, tensors() | {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}),
        ["1 tensors do not exist in the architecture", "blk.0.attn_q_norm.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_named(change: Callable[[Path], object], words: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    change(path)
    with pytest.raises(UserError) as error:
        check_source(path)
    assert all(word in str(error.value) for word in [str(path), *words])


def test_an_absent_tensor_is_named(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.1.ffn_up.weight"]
    with pytest.raises(UserError, match=r"1 of 21 weights.*missing: model.layers.1.mlp.up_proj.weight"):
        convert(write_gguf(tmp_path / "m.gguf", None, weights), tmp_path / "base.nemo")
    assert not (tmp_path / "base.nemo").exists()


ROPE: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    "none": ({}, False, {"rope_type": "default"}),
    "linear": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        False,
        {"rope_type": "linear", "factor": 4.0},
    ),
    "scale_linear": ({"llama.rope.scale_linear": 2.0}, False, {"rope_type": "linear", "factor": 2.0}),
    "llama3": ({}, True, {"rope_type": "llama3", **LLAMA3}),
}


@pytest.mark.parametrize("name", ROPE)
def test_rotary_scaling_is_as_hugging_face_computes_it(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    metadata, has_factors, rope = ROPE[name]
    weights = tensors() | ({"rope_freqs.weight": llama3_factors()} if has_factors else {})
    path = write_gguf(tmp_path / "m.gguf", metadata, weights)
    convert(path, tmp_path / "base.nemo")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", trust_remote_code=False)
    loaded.config.rope_parameters = {"rope_theta": 10000.0, **rope}
    theirs = LlamaForCausalLM(loaded.config).eval()
    theirs.load_state_dict(loaded.state_dict())
    ids = torch.arange(3, 63)[None]
    with torch.no_grad():
        wanted = theirs(ids).logits
    torch.testing.assert_close(logits_of(tmp_path / "base.nemo", ids), wanted, rtol=1e-4, atol=1e-3)


def test_factors_that_are_not_llama_3s_are_refused(tmp_path: Path) -> None:
    factors = np.linspace(1, 9, SIZE // 2, dtype=np.float32)
    with pytest.raises(UserError, match=r"rope_freqs.weight.*not those of Llama 3's scaling"):
        read_model(write_gguf(tmp_path / "m.gguf", None, tensors() | {"rope_freqs.weight": factors}))


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "1234", ["123", "4"]),
        pytest.param(
            "llama-bpe", "12312", ["123", "12"], marks=needs_transformers(AS_LLAMA_CPP, "splits texts otherwise")
        ),
        ("smollm", "123", ["1", "2", "3"]),
        pytest.param("qwen2", "123", ["1", "2", "3"], marks=needs_transformers(AS_LLAMA_CPP, "splits texts otherwise")),
    ],
)
def test_token_ids_are_the_files_own(pre: str, text: str, pieces: list[str], tmp_path: Path) -> None:
    """Also if the vocabulary lacks <|endoftext|>, which transformers' class would add."""
    tokens = TOKENS[:-1]
    path = write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.pre": pre}, tokens=tokens)
    convert(path, tmp_path / "base.nemo")
    base = load_base(tmp_path / "base.nemo")
    assert base.tokenizer.text_to_ids(text) == [tokens.index(piece) for piece in pieces]
    assert base.tokenizer.text_to_ids("<pad> t") == [2, tokens.index("Ġt")]
    assert (base.tokenizer.vocab_size, base.shape.vocab_size) == (len(tokens), len(tokens))
    assert (base.tokenizer.bos_id, base.tokenizer.eos_id, base.tokenizer.pad_id) == (0, 1, 2)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_gives_sentencepieces_ids(prefix: bool, tmp_path: Path) -> None:
    own = sentencepiece_model(add_dummy_prefix=prefix)
    numbers = range(own.vocab_size())
    kinds = [2 if own.is_unknown(n) else 3 if own.is_control(n) else 6 if own.is_byte(n) else 1 for n in numbers]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.scores": [float(own.get_score(number)) for number in numbers],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tokens = [own.id_to_piece(number) for number in numbers]
    convert(write_gguf(tmp_path / "m.gguf", metadata, tokens=tokens), tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    for text in ("near the river", " near  the\n\triver 2023", "ż北😀", " "):
        assert tokenizer.text_to_ids(text) == own.encode(text)
    assert tokenizer.ids_to_text(tokenizer.text_to_ids(" near the river")) == " near the river"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (1, 2, None, 0)


def test_tied_output(tmp_path: Path) -> None:
    weights = {name: weight for name, weight in tensors().items() if name != "output.weight"}
    convert(write_gguf(tmp_path / "m.gguf", None, weights), tmp_path / "base.nemo")
    assert read_config(tmp_path / "base.nemo")["share_embeddings_and_output_weights"] is True


def test_a_gguf_file_given_as_base_gets_the_command(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Tiny 1.gguf")
    problem = source_problem(path)
    assert problem is not None
    assert "conversion_hf2nemo=hf" in problem.fix
    with pytest.raises(UserError) as error:
        load_base(path)
    assert problem.fix in str(error.value)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gguf_split/split-00001-of-00002.gguf", ["part 1 of 2", "llama-gguf-split --merge"]),
        ("gguf_rope_scaling/yarn.gguf", ["'yarn' is not supported"]),
    ],
)
def test_cases_that_are_refused(case: str, words: list[str], tmp_path: Path) -> None:
    assert_refused(shared_path(f"cases/{case}"), tmp_path / "base.nemo", words)


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("gguf_rope_scaling/linear.gguf", "seq_len_interpolation_factor", 4.0),
        ("gguf_rope_scaling/llama3.gguf", "scale_factor", 8.0),
        pytest.param(
            *("gguf_llama3_vocab/llama3-like.gguf", "rotary_base", 500000.0),
            marks=needs_transformers(AS_LLAMA_CPP, "splits texts otherwise"),
        ),
    ],
)
def test_cases_that_are_converted(case: str, key: str, value: float, tmp_path: Path) -> None:
    source = shared_path(f"cases/{case}")
    convert(source, tmp_path / "base.nemo")
    assert read_config(tmp_path / "base.nemo")[key] == value
    base = load_base(tmp_path / "base.nemo")
    tokens = read_gguf(source).metadata["tokenizer.ggml.tokens"]
    assert base.tokenizer.vocab_size == len(tokens)
    assert "".join(tokens[token] for token in base.tokenizer.text_to_ids("as 12")) == "asĠ12"
