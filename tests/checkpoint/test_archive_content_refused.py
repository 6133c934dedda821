# SPDX-License-Identifier: Apache-2.0
"""Archives whose configuration, weights or tokenizer is not what it should be."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.checkpoint.archive import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Archive,
    read_config,
)
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.outline import read_outline
from nemo_launcher.errors import UserError
from tests.archives import write_tar

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "word"),
    [(b"a: [1", "is not valid YAML"), (b"- 1\n- 2\n", "is not a mapping"), (b"a: b: c", "is not valid YAML")],
)
def test_broken_config_is_named(text: bytes, word: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.nemo", {"model_config.yaml": text})
    with pytest.raises(UserError, match=r"a\.nemo: model_config\.yaml") as error:
        read_config(path)
    assert word in str(error.value)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickled_class_is_refused_and_not_run(tmp_path: Path) -> None:
    evil = {"model.language_model.encoder.layers.0:adapter_1": Evil(tmp_path / "proof")}
    write_archive(tmp_path / "a.nemo", {"a": 1}, {WEIGHTS_NAME: lambda stream: torch.save(evil, stream)})
    with pytest.raises(UserError, match=r"a\.nemo: model_weights\.ckpt: cannot be read"):
        read_adapter(tmp_path / "a.nemo")
    assert not (tmp_path / "proof").exists()
    with zipfile.ZipFile(io.BytesIO(Archive(tmp_path / "a.nemo").open(WEIGHTS_NAME).read())) as file:
        pickle.loads(file.read(next(name for name in file.namelist() if name.endswith("data.pkl"))))
    assert (tmp_path / "proof").exists()  # unpickling it does run the code


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04broken zip"])
def test_broken_weights_are_named(content: bytes, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.nemo", {"a": 1}, {WEIGHTS_NAME: content})
    with pytest.raises(UserError, match=r"a\.nemo: model_weights\.ckpt: cannot be read"):
        read_adapter(tmp_path / "a.nemo")


@pytest.mark.parametrize(
    ("names", "word", "way_out"),
    [
        (["context/io.json", "weights/.metadata", "weights/__0_0.distcp"], "a checkpoint of NeMo 2", "export_ckpt"),
        (["model.yaml", "io.json"], "the context/ folder of a NeMo 2 checkpoint", "context/ and weights/"),
        (["context/model.yaml", "weights/adapter_metadata.json"], "an adapter of NeMo 2", "learning stage"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            "an adapter of PEFT or AdapterHub",
            "nemo-launcher import",
        ),
        (["latest_checkpointed_iteration.txt"], "a checkpoint of Megatron-LM", "conversion_hf2nemo"),
        ([".metadata", "common.pt", "__0_0.distcp"], "only the weights of a distributed checkpoint", "model_weights/"),
    ],
)
@pytest.mark.parametrize("mode", ["folder", "w", "w:gz"])
def test_what_other_programs_write_is_named(
    mode: str, names: list[str], word: str, way_out: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    if mode == "folder":
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"{}")
    else:
        write_tar(path, dict.fromkeys(names, b"{}"), mode)
    for read in (Archive, read_outline):
        with pytest.raises(UserError, match="holds no model_config") as error:
            read(path)
        (problem,) = error.value.problems
        assert word in problem.what
        assert way_out in problem.fix


def test_a_tokenizer_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    """A sparse file takes no space, but a copy of it would."""
    (tmp_path / "a/tokenizer").mkdir(parents=True)
    (tmp_path / "a" / CONFIG_NAME).write_bytes(b"a: 1\n")
    (tmp_path / "a/tokenizer/tokenizer.json").touch()
    os.truncate(tmp_path / "a/tokenizer/tokenizer.json", 1 << 40)
    with Archive(tmp_path / "a") as archive, pytest.raises(UserError, match="tokenizer/: has 1,099,511,627,776 bytes"):
        archive.extract_folder("tokenizer", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
