# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of NeMo's archives: GPT-2's two files, Hugging Face folders, and errors without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.data import tokenizer_kinds
from nemo_launcher.data.fast_tokenizers import read_plain
from nemo_launcher.data.tokenizer_kinds import TokenizerKind, is_inside
from nemo_launcher.data.tokenizers import HuggingFaceTokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.base import load_base
from tests.data.tokenizer_files import archive_with, folder_members
from tests.engine import TEMPLATE, save_tokenizer, squad_records
from tests.versions import as_saved_by_5

pytestmark = pytest.mark.unit

END = "<|endoftext|>"

TEXTS = (
    "Anna lives near the river.",
    "  two  spaces\n\tand more",
    "Grüße, 日本 🙂",
    "it's don't we'll",
    f"one{END}two",
    "",
)

NEMO_SECTION = {
    "library": "megatron",
    "type": "GPT2BPETokenizer",
    "model": None,
    "vocab_file": "nemo:0123_vocab.json",
    "merge_file": "nemo:4567_merges.txt",
    "delimiter": None,
}


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """GPT-2's two files with a small vocabulary."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=False)
    texts = [TEMPLATE.format(**record) for record in squad_records(24)]
    tokenizer.train_from_iterator(texts, vocab_size=400, special_tokens=[], show_progress=False)
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary[END] = len(vocabulary)  # the last id, as in OpenAI's vocabulary
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return {
        "0123_vocab.json": (folder / "vocab.json").read_bytes(),
        "4567_merges.txt": (folder / "merges.txt").read_bytes(),
    }


@pytest.mark.parametrize("names", [{}, {"type": "megatron-gpt-345m"}, {"library": "huggingface", "type": "gpt2"}])
def test_gpt2_files_give_hugging_faces_tokens(
    names: dict[str, str], gpt2_files: dict[str, bytes], tmp_path: Path
) -> None:
    from transformers import GPT2Tokenizer

    with archive_with(tmp_path / "a.nemo", NEMO_SECTION | names, gpt2_files) as archive:
        ours = load_tokenizer(archive)
        assert is_inside(archive)
    for name, content in gpt2_files.items():
        (tmp_path / name.partition("_")[2]).write_bytes(content)
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert ours.text_to_ids(text) == theirs.encode(text), text
        assert ours.ids_to_text(ours.text_to_ids(text)) == text.replace(END, "")
    assert ours.vocab_size == len(theirs)
    end = theirs.eos_token_id
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (end, end, end, end)
    assert ours.special_ids == {end}
    assert (ours.token_to_id(END), ours.token_to_id("<extra_id_0>")) == (end, None)


def test_a_base_with_gpt2s_tokenizer_loads(gpt2_files: dict[str, bytes], tiny_base: Path, tmp_path: Path) -> None:
    with Archive(tiny_base) as archive:
        weights, config = read_tensors(archive, WEIGHTS_NAME), archive.config()
    members: dict[str, Any] = {**gpt2_files, WEIGHTS_NAME: lambda stream: torch.save(weights, stream)}
    write_archive(tmp_path / "a.nemo", config | {"tokenizer": NEMO_SECTION}, members)
    base = load_base(tmp_path / "a.nemo")
    assert base.tokenizer.ids_to_text(base.tokenizer.text_to_ids(TEXTS[0])) == TEXTS[0]


def test_an_absent_or_damaged_gpt2_file_is_named(gpt2_files: dict[str, bytes], tmp_path: Path) -> None:
    without = {name: content for name, content in gpt2_files.items() if "merges" not in name}
    with (
        archive_with(tmp_path / "a.nemo", NEMO_SECTION, without) as archive,
        pytest.raises(UserError, match=r"a\.nemo: 4567_merges\.txt: is absent"),
    ):
        load_tokenizer(archive)
    damaged = gpt2_files | {"0123_vocab.json": b'{"a": '}
    with (
        archive_with(tmp_path / "b.nemo", NEMO_SECTION, damaged) as archive,
        pytest.raises(UserError, match=r"b\.nemo: tokenizer: cannot be read"),
    ):
        load_tokenizer(archive)


def lower_case(archive: Archive, section: dict[str, Any]) -> Any:
    """The reader of another kind of tokenizer."""
    return archive.read(section["table"], 100).decode().lower()


def test_another_kind_of_tokenizer_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = TokenizerKind(
        matches=lambda section: section.get("library") == "table",
        absent=lambda section, names, source: None if section["table"] in names else Problem(source, "has no table"),
        reader=f"{__name__}:lower_case",
    )
    section = {"library": "table", "table": "table.txt"}
    with archive_with(tmp_path / "a.nemo", section, {"table.txt": b"ABC"}) as archive:
        with pytest.raises(UserError, match="carries no tokenizer"):
            load_tokenizer(archive)
        monkeypatch.setattr(tokenizer_kinds, "KINDS", (*tokenizer_kinds.KINDS, kind))
        assert load_tokenizer(archive) == "abc"
    with (
        archive_with(tmp_path / "b.nemo", section, {}) as archive,
        pytest.raises(UserError, match="has no table"),
    ):
        load_tokenizer(archive)


@pytest.mark.parametrize("kind", ["nemo:my_tokenizer", "nemo:tokenizer", "somebody/model"])
def test_a_hugging_face_folder_inside_is_found(kind: str, tmp_path: Path) -> None:
    inside = kind.removeprefix("nemo:") if kind.startswith("nemo:") else "tokenizer"
    members = folder_members(tmp_path / "saved", inside)
    section = {"library": "huggingface", "type": kind}
    with archive_with(tmp_path / "a.nemo", section, members) as archive:
        assert is_inside(archive)
        assert load_tokenizer(archive).text_to_ids("the river")


def test_a_hugging_face_folder_outside_is_found(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "saved")
    section = {"library": "huggingface", "type": str(tmp_path / "saved")}
    with archive_with(tmp_path / "a.nemo", section, {}) as archive:
        assert not is_inside(archive)
        assert load_tokenizer(archive).text_to_ids("the river")


@pytest.mark.parametrize(
    "section",
    [
        {"library": "huggingface", "type": "somebody/model"},
        {"library": "huggingface", "type": "/models/gone"},
        {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": None, "merge_file": None},
        {"library": "tiktoken"},
    ],
)
def test_without_files_the_way_out_is_told(section: dict[str, Any], tmp_path: Path) -> None:
    with archive_with(tmp_path / "a.nemo", section, {}) as archive, pytest.raises(UserError) as error:
        load_tokenizer(archive)
    assert "carries no tokenizer" in str(error.value)
    assert str(section.get("type", section["library"])) in str(error.value)
    assert "stages=[conversion_hf2nemo]" in str(error.value)
    assert ("folder tokenizer/" in str(error.value)) == (section["library"] == "huggingface")


# --- tokenizer.json without transformers ------------------------------------------------------------------------


def saved(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Return a tokenizer's folder with a modified configuration."""
    save_tokenizer(folder)
    path = as_saved_by_5(folder) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (changes or {})))
    return folder


def test_a_plain_folder_gives_transformers_tokens(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"unk_token": "<pad>"})
    ours, theirs = read_plain(folder), HuggingFaceTokenizer(folder)
    assert ours is not None
    for text in (*TEXTS, "<s>two</s> of<pad>them"):
        ids = ours.text_to_ids(text)
        assert ids == theirs.text_to_ids(text), text
        assert ours.ids_to_text(ids) == theirs.ids_to_text(ids)
    for name in ("bos_id", "eos_id", "pad_id", "unk_id", "vocab_size", "special_ids"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for token in ("<s>", "the", "<nothing>"):
        assert ours.token_to_id(token) == theirs.token_to_id(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"extra_special_tokens": ["<more>"]},
        {"added_tokens_decoder": {"500": {"content": "<more>", "special": True}}},
        {"unk_token": "<absent>"},
        {"unk_token": "the"},
    ],
)
def test_what_tokenizer_json_does_not_say_is_left_to_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    assert read_plain(saved(tmp_path / "plain")) is not None
    assert read_plain(saved(tmp_path / "changed", changes)) is None
