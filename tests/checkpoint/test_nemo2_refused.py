# SPDX-License-Identifier: Apache-2.0
"""NeMo 2 folders that are refused: incomplete, damaged and hostile files. Nothing is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests.archives import write_tar
from tests.checkpoint.pieces import refused
from tests.checkpoint.test_tensors import Call
from tests.nemo2 import edit_yaml

pytestmark = pytest.mark.unit

_METADATA = "weights/.metadata"
_QKV = "module.decoder.layers.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("absent", "what"),
    [
        ("context/model.yaml", "a checkpoint of NeMo 2 without context/model.yaml"),
        (_METADATA, "weights/.metadata: is absent"),
        ("weights/__0_0.distcp", "which is absent"),
    ],
)
def test_an_absent_file_is_named(absent: str, what: str, folder: Path) -> None:
    (folder / absent).unlink()
    assert what in refused(folder)


@pytest.mark.parametrize(("part", "word"), [("context", "the context/ folder"), ("weights", "only the weights")])
def test_a_part_of_the_folder_is_named(part: str, word: str, folder: Path) -> None:
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match=word) as error:
            read(folder / part)
        assert "context/ and weights/" in str(error.value)


def test_zarr_is_named_with_the_way_out(folder: Path) -> None:
    (folder / "weights/metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    assert "save_ckpt_format='torch_dist'" in refused(folder)


def test_an_adapter_is_named(folder: Path) -> None:
    (folder / "weights/adapter_metadata.json").write_text("{}")
    assert "an adapter of NeMo 2" in refused(folder)


# --- hostile files --------------------------------------------------------------------------------------------------


def edit_metadata(folder: Path, change: Callable[[metadata.Metadata], object]) -> None:
    path = folder / _METADATA
    content = pickle.loads(path.read_bytes())  # this test has written it
    change(content)
    path.write_bytes(pickle.dumps(content))


def test_nothing_is_run(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    touch = f"import pathlib; pathlib.Path({str(proof)!r}).touch()"
    (folder / "weights/common.pt").write_bytes(pickle.dumps(Call(exec, touch)))
    described = json.loads((folder / "context/io.json").read_text())
    call = {"type": {"type": "pyref", "module": "os", "name": "system"}, "items": [["Attr(name='command')", touch]]}
    described["objects"]["evil_1"] = call | {"paths": ["<root>.model.config.init_method"]}
    (folder / "context/io.json").write_text(json.dumps(described))
    edit_yaml(folder, lambda model: model.update(optim={"_target_": "os.system", "command": f"touch {proof}"}))
    assert Archive(folder).config()["num_layers"] == 2
    text = (folder / "context/model.yaml").read_text()
    for tag in (f"!!python/object/apply:os.system ['touch {proof}']", "!!python/name:os.system", "!Evil {a: 1}"):
        (folder / "context/model.yaml").write_text(f"{text}evil: {tag}\n")
        assert "is not valid YAML: could not determine a constructor" in refused(folder)
    (folder / "context/model.yaml").write_text(text)
    (folder / _METADATA).write_bytes(pickle.dumps({"a": Call(exec, touch)}))
    assert "builtins.exec, which is not part of a tensor's description; it is not executed" in refused(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "config: 1", "config: []", "a: &a [*a]", "config: {<<: {}}", "{" * 60, "config: {}\n" * 2]
)
def test_another_model_yaml_is_refused(content: str, folder: Path) -> None:
    (folder / "context/model.yaml").write_text(content)
    assert "context/model.yaml" in refused(folder)


@pytest.mark.parametrize("content", ["{", '{"objects": ' + "[" * 100 + "]" * 100 + "}"])
def test_another_io_json_is_refused(content: str, folder: Path) -> None:
    (folder / "context/io.json").write_text(content)
    assert "context/io.json" in refused(folder)


@pytest.mark.parametrize("objects", [None, [], {"a": 1}, {"a": {"paths": ["<root>.model.config"], "items": [1, [2]]}}])
def test_an_io_json_of_another_form_says_nothing(objects: Any, folder: Path) -> None:
    (folder / "context/io.json").write_text(json.dumps({"objects": objects}))
    assert Archive(folder).config()["num_layers"] == 2


def in_file(path: str) -> Callable[[metadata.Metadata], None]:
    def change(m: metadata.Metadata) -> None:
        for info in m.storage_data.values():
            info.relative_path = path

    return change


def without_a_chunk(m: metadata.Metadata) -> None:
    m.state_dict_metadata[_QKV].chunks.pop()


def with_a_chunk_twice(m: metadata.Metadata) -> None:
    m.state_dict_metadata[_QKV].chunks *= 2


def with_another_size(m: metadata.Metadata) -> None:
    m.state_dict_metadata[_QKV].size = torch.Size([3, 64, 32])


@pytest.mark.parametrize(
    "change",
    [
        in_file("/etc/passwd"),
        in_file("../context/model.yaml"),
        in_file("weights/__0_0.distcp"),
        in_file("metadata.json"),
        without_a_chunk,
        with_a_chunk_twice,
        with_another_size,
    ],
)
def test_pieces_that_are_no_whole_are_refused(change: Callable[[metadata.Metadata], None], folder: Path) -> None:
    edit_metadata(folder, change)
    assert f"{_METADATA}: cannot be read" in refused(folder)
    with pytest.raises(UserError, match=r"\.metadata: cannot be read"):
        read_outline(folder)


def test_a_shorter_file_and_a_link_are_refused(folder: Path) -> None:
    stored = folder / "weights/__0_0.distcp"
    content = stored.read_bytes()
    stored.write_bytes(content[:-3000])
    assert "ends after the end" in refused(folder)
    stored.unlink()
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(content)
    stored.symlink_to(elsewhere)
    assert "is a link, which is not followed" in refused(folder)


def test_weights_of_another_size_are_named(folder: Path) -> None:
    (folder / "context/io.json").unlink()
    edit_yaml(folder, lambda model: model["config"].update(ffn_hidden_size=40))
    with pytest.raises(UserError, match=r"mlp\.linear_fc1\.weight"):
        load_base(folder)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_folder_in_an_archive_is_named(mode: str, folder: Path) -> None:
    names = ("context/model.yaml", "weights/.metadata", "weights/__0_0.distcp")
    path = write_tar(folder.parent / "a.nemo", {name: (folder / name).read_bytes() for name in names}, mode)
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match="an archive of a NeMo 2 checkpoint"):
            read(path)
