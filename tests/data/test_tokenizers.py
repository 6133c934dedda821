# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of NeMo's archives: GPT-2's two files, Hugging Face folders, and errors without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.checkpoint.tokenizer_section import is_inside
from nemo_launcher.data.fast_tokenizers import read_plain
from nemo_launcher.data.tokenizers import HuggingFaceTokenizer, load_tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.engine import TEMPLATE, save_tokenizer, squad_records

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


def archive_with(path: Path, section: dict[str, Any], members: dict[str, bytes]) -> Archive:
    write_archive(path, {"tokenizer": section}, dict(members))
    return Archive(path)


def folder_members(folder: Path, inside: str) -> dict[str, bytes]:
    save_tokenizer(folder)
    return {f"{inside}/{file.name}": file.read_bytes() for file in folder.iterdir()}


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
    path = folder / "tokenizer_config.json"
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


# --- folders of somebody else -----------------------------------------------------------------------------------


def with_settings(folder: Path, changes: dict[str, Any], *, name: str = "tokenizer_config.json") -> dict[str, bytes]:
    """Return the members of a tokenizer with a modified configuration, and a module that creates a file when run."""
    members = folder_members(folder, "tokenizer")
    config = json.loads(members[f"tokenizer/{name}"]) if f"tokenizer/{name}" in members else {}
    members[f"tokenizer/{name}"] = json.dumps(config | changes).encode()
    proof = folder.parent / "proof"
    code = f"import pathlib\npathlib.Path({str(proof)!r}).touch()\nclass Own: pass\n"
    return members | {"tokenizer/own.py": code.encode()}


CODE = {"auto_map": {"AutoTokenizer": ["own.Own", None]}}


@pytest.mark.parametrize("changes", [CODE | {"tokenizer_class": "OwnTokenizer"}, CODE | {"tokenizer_class": None}])
def test_code_of_a_tokenizer_is_refused_without_a_question(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    members = with_settings(tmp_path / "saved", changes)
    with (
        archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive,
        pytest.raises(UserError, match=r"a\.nemo: tokenizer: tokenizer_config\.json: auto_map refers to code"),
    ):
        load_tokenizer(archive)
    assert not (tmp_path / "proof").exists()


def test_code_of_a_tokenizer_is_ignored_where_transformers_has_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    members = with_settings(tmp_path / "saved", CODE | {"tokenizer_class": "GPT2Tokenizer"})
    for _ in range(2):
        with archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive:
            assert load_tokenizer(archive).text_to_ids("the river")
    assert capsys.readouterr().err.count("auto_map is ignored: transformers has GPT2Tokenizer") == 1
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"vocab_file": "/etc/passwd"}, "vocab_file"),
        ({"tokenizer_file": "../../secret.json"}, "tokenizer_file"),
        ({"extra_ids": 10**9, "tokenizer_class": "T5Tokenizer"}, "extra_ids"),
        ({"tokenizer_class": ["a"]}, "tokenizer_class"),
        ({"added_tokens_decoder": [1, 2], "tokenizer_class": "GPT2Tokenizer"}, "cannot be read"),
    ],
)
def test_settings_of_a_tokenizer_are_checked(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    members = with_settings(tmp_path / "saved", changes)
    with (
        archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive,
        pytest.raises(UserError, match=rf"a\.nemo: tokenizer.*{word}"),
    ):
        load_tokenizer(archive)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"{" * 100_000),
        ("tokenizer_config.json", b'{"a": ' * 60 + b"1" + b"}" * 60),
        ("tokenizer.json", b"[" * 1_000_000),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}'),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "unk_id": 9, "vocab": []}}'),
        ("special_tokens_map.json", b'"text"'),
        ("config.json", b'{"model_type": "gpt2", "num_labels": 1000000000}'),
        ("config.json", b"\xff\xfe"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    members = folder_members(tmp_path / "saved", "tokenizer") | {f"tokenizer/{name}": content}
    with (
        archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive,
        pytest.raises(UserError, match=r"a\.nemo: tokenizer"),
    ):
        load_tokenizer(archive)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("normalizer", [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10}] * 3),
        ("normalizer", [{"type": "Prepend", "prepend": "x" * 100_000}]),
        ("decoder", [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}]),
    ],
)
def test_replacements_that_swell_a_text_are_refused(
    part: str, steps: list[dict[str, Any]], plain: bool, tmp_path: Path
) -> None:
    """A tokenizer.json of a kilobyte could exhaust the memory with a single prompt."""
    save_tokenizer(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {part: {"type": "Sequence", f"{part}s": steps}}))
    if not plain:  # this makes transformers read it
        (tmp_path / "saved" / "special_tokens_map.json").write_text("{}")
    section = {"library": "huggingface", "type": "nemo:tokenizer"}
    members = {f"tokenizer/{file.name}": file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    with (
        archive_with(tmp_path / "a.nemo", section, members) as archive,
        pytest.raises(UserError, match=r"lengthen a text|to every text"),
    ):
        load_tokenizer(archive)


@pytest.mark.parametrize("length", ["8", -1, None, 10**40])
def test_the_length_in_a_tokenizers_file_does_not_matter(length: Any, tmp_path: Path) -> None:
    members = with_settings(tmp_path / "saved", {"model_max_length": length})
    with archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive:
        assert len(load_tokenizer(archive).text_to_ids("the river " * 20)) > 20


def test_ids_that_chance_decides_are_refused(tmp_path: Path) -> None:
    members = with_settings(tmp_path / "saved", {})
    content = json.loads(members["tokenizer/tokenizer.json"])
    content["model"]["dropout"] = 0.5
    members["tokenizer/tokenizer.json"] = json.dumps(content).encode()
    with (
        archive_with(tmp_path / "a.nemo", {"library": "huggingface"}, members) as archive,
        pytest.raises(UserError, match="at random"),
    ):
        load_tokenizer(archive)


def test_countless_sentinels_are_refused(tmp_path: Path) -> None:
    section = {"library": "sentencepiece", "model": "nemo:t.model", "num_sentinel_tokens": 10**9}
    with (
        archive_with(tmp_path / "a.nemo", section, {"t.model": b"x"}) as archive,
        pytest.raises(UserError, match=r"a\.nemo: tokenizer\.num_sentinel_tokens: 1000000000 is not a whole number"),
    ):
        load_tokenizer(archive)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x0a\x05\x0a\x01a\x15", b"\xff" * 300, b"garbage" * 30])
def test_a_damaged_sentencepiece_model_is_named(content: bytes, tmp_path: Path) -> None:
    section = {"library": "sentencepiece", "model": "nemo:t.model"}
    with (
        archive_with(tmp_path / "a.nemo", section, {"t.model": content}) as archive,
        pytest.raises(UserError, match=r"a\.nemo: tokenizer: cannot be read"),
    ):
        load_tokenizer(archive)
