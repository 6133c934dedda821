# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of somebody else: their code is not run, and what is wrong in their files is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.tokenizers import load_tokenizer
from nemo_launcher.errors import UserError
from tests.data.tokenizer_files import archive_with, folder_members
from tests.engine import save_tokenizer

pytestmark = pytest.mark.unit


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
