# SPDX-License-Identifier: Apache-2.0
"""The reader of foreign files: names, YAML and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import MAX_DEPTH, inside, load_json, name_problems, parse_json, read_bytes, reading
from nemo_launcher.files.foreign_yaml import dump_yaml, load_yaml, parse_yaml

pytestmark = pytest.mark.unit

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "tokenizer//etc/passwd", "a/../../b", "..", ".", "", "a/./b", "a\nb", "a\x00b", "C:\\x", "x" * 256],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        inside(tmp_path, name, "a.nemo")
    assert name_problems([name], "a.nemo")


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads outside"):
        inside(tmp_path / "folder", "out/file", "a.nemo")
    assert inside(tmp_path / "folder", "sub/file", "a.nemo") == tmp_path / "folder" / "sub" / "file"


@pytest.mark.parametrize("pair", [("a/b", "a/b"), ("a/B", "A/b"), ("\u00e9", "e\u0301"), ("\ufb01", "fi")])
def test_two_names_of_one_file_are_refused(pair: tuple[str, str]) -> None:
    (problem,) = name_problems(pair, "a.nemo")
    assert "twice" in problem.what or "only by case or Unicode" in problem.what
    assert name_problems(["a/b", "a/c", "tokenizer/vocab.json"], "a.nemo") == []


def test_yaml_is_read_as_omegaconf_reads_it() -> None:
    text = "a: 1e5\nb: 1.0\nc: 2020-01-01\nd: [1, 2]\ne: &x {q: 1}\nf: *x\ng: 1_000\nh: yes\nj: .inf\nk: 1.5e-3\nl: ~"
    assert parse_yaml(text, "c.yaml") == OmegaConf.to_container(OmegaConf.create(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "once aliases are expanded"),
        ("a: &a [*a]", "contains itself"),
        ("[" * (MAX_DEPTH + 1), "nested"),
        ("a: 1\na: 2", "twice"),
        ("a: !!python/object/apply:os.system [ls]", "constructor"),
        ("a: !!binary YQ==", "constructor"),
        ("? [1]\n: 2", "a key is a list"),
        ("<<: {a: 1}", "merge keys"),
        ("a: " + "9" * 5000, "digits"),
        ('a: "\\ud800"', "surrogate"),
        ("\n".join(f"{number * (2**61 - 1)}: 0" for number in range(10_001)), "not text"),  # all with the same hash
        ('"\\U0000dfff": 1', "surrogate"),
        (b"a: \xff", "UTF-8"),
    ],
)
def test_yaml_beyond_its_bounds_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_yaml(text, "c.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ("{" + "".join(f'"{number}": 1, ' for number in range(500_000)) + '"499999": 2}', "'499999' occurs twice"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "too large"),
        ("[" + "9" * 5000 + "]", "digits"),
        ("[" * 100_000, "deep"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("[1", "x.json:1:3"),
        ("[" + "[]," * 4_000_001 + "1]", "8,000,000 values"),
    ],
    ids=range(12),
)
def test_json_beyond_its_bounds_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_json(text, "x.json")


def test_json_within_its_bounds_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "\U0001f600", "\u00e9"], "b": {"c": -(10**20)}}
    assert parse_json(json.dumps(value), "x.json") == value
    assert parse_json(b"\xef\xbb\xbf[]", "x.json") == []
    assert parse_json('{"a": 1, "a": 2}', "x.json", unique_keys=False) == {"a": 2}


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    for path, reason in ((tmp_path, "folder"), (tmp_path / "b", "no such"), (Path("/dev/null"), "device")):
        with pytest.raises(UserError, match=reason):
            read_bytes(path)
    with pytest.raises(UserError, match="more than 10 bytes"):
        read_bytes(tmp_path / "a", 10)
    (tmp_path / "c").write_text("[1]")
    assert load_json(tmp_path / "c") == load_yaml(tmp_path / "c") == [1]


def test_what_a_library_raises_names_the_file() -> None:
    class PanicException(BaseException):
        """As raised by pyo3."""

    for error in (ValueError("bad\nheader"), RecursionError(), PanicException("no entry"), OSError("odd")):
        with pytest.raises(UserError, match=r"m\.safetensors: cannot be read"), reading("m.safetensors"):
            raise error
    for passed in (KeyboardInterrupt(), SystemExit(3), OSError(28, "No space left on device")):
        with pytest.raises(type(passed)), reading("m.safetensors"):
            raise passed


def test_containers_of_omegaconf_are_written_as_plain_ones() -> None:
    config = OmegaConf.create({"a": [1, {"b": "${a.0}"}], "c": {"d": None}})
    for value in (config, dict(config)):
        assert parse_yaml(dump_yaml(value), "x") == {"a": [1, {"b": 1}], "c": {"d": None}}
