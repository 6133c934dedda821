# SPDX-License-Identifier: Apache-2.0
"""Invalid bases and adapters: status 2, a message with file and key, and nothing written or run."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.families.base import load_base
from tests import t5
from tests.checkpoint.sharding import gpt_config, sharded_gpt, stored_gpt
from tests.checkpoint.test_base import rewritten
from tests.checkpoint.test_tensors import Call
from tests.cli.conftest import Run
from tests.cli.conftest import run as run  # a fixture
from tests.engine import BOTTLENECK, adapted, tiny_gpt_nemo, write_squad
from tests.jobs import evaluation_config, job_config, run_script

pytestmark = pytest.mark.integration


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder, except those of the jobs that the tests start."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in files if not p.name.endswith((".log", "_hydra.yaml", "_outputs.json"))}


def refused(script: str, config: dict[str, Any], folder: Path) -> str:
    """Run a script that must refuse and leave everything unchanged; return its output."""
    before = contents(folder)
    job = run_script(script, config, folder)
    assert "Traceback" not in job.output, job.output
    assert job.status == 2, job.output
    assert contents(folder) == before
    return job.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data, and an earlier job's adapter where this job would write its own."""
    save_adapter(tmp_path / "results/adapter.nemo", {"seed": 1}, {"key": {"weight": torch.ones(3)}})
    write_squad(tmp_path / "data")
    return tmp_path


# --- bases ------------------------------------------------------------------------------------------------------


def truncated(base: Path, folder: Path) -> Path:
    (folder / "cut.nemo").write_bytes(base.read_bytes()[: base.stat().st_size // 2])
    return folder / "cut.nemo"


def as_gzip(base: Path, path: Path) -> Path:
    with tarfile.open(base) as source, tarfile.open(path, "w:gz") as target:
        for member in source.getmembers():
            target.addfile(member, source.extractfile(member))
    return path


def truncated_gzip(base: Path, folder: Path) -> Path:
    path = as_gzip(base, folder / "cut.nemo")
    path.write_bytes(path.read_bytes()[:-9])  # the tar is complete, but not its checksum
    return path


def changed_gzip(base: Path, folder: Path) -> Path:
    path = as_gzip(base, folder / "changed.nemo")
    content = bytearray(path.read_bytes())
    content[-7] ^= 1  # a byte of the checksum
    path.write_bytes(content)
    return path


def with_member(base: Path, folder: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    """Copy a base with one member added or replaced."""
    path = folder / "member.nemo"
    with tarfile.open(base) as source, tarfile.open(path, "w") as target:
        for kept in source.getmembers():
            if kept.name.removeprefix("./") != member.name:
                target.addfile(kept, source.extractfile(kept))
        member.size = len(content)
        target.addfile(member, io.BytesIO(content))
    return path


def outside(name: str) -> Callable[[Path, Path], Path]:
    return lambda base, folder: with_member(base, folder, tarfile.TarInfo(name), b"owned")


def link(name: str) -> Callable[[Path, Path], Path]:
    def make(base: Path, folder: Path) -> Path:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return with_member(base, folder, member)

    return make


def without_a_rank(base: Path, folder: Path) -> Path:
    config = gpt_config("mcore_gated")
    whole = sharded_gpt(folder / "whole.nemo", config, stored_gpt(config), 2, 1)
    with Archive(whole) as archive:
        members: dict[str, Any] = {
            name: archive.open(name).read() for name in archive.names - {CONFIG_NAME} if "mp_rank_01" not in name
        }
        write_archive(folder / "ranks.nemo", archive.config(), members)
    return folder / "ranks.nemo"


def with_code(base: Path, folder: Path) -> Path:
    def change(weights: dict[str, Any]) -> dict[str, Any]:
        touch = f"import pathlib; pathlib.Path({str(folder / 'proof')!r}).touch()"
        return weights | {"model.decoder.final_layernorm.weight": Call(exec, touch)}

    return rewritten(base, folder / "code.nemo", weights=change)


def fewer_rows(base: Path, folder: Path) -> Path:
    def cut(weights: dict[str, Any]) -> dict[str, Any]:
        name = "model.embedding.word_embeddings.weight"
        return weights | {name: weights[name][:100].clone()}

    return rewritten(base, folder / "rows.nemo", weights=cut)


def head_of_other_rows(base: Path, folder: Path) -> Path:
    config = gpt_config("mcore_gated") | {"mcore_gpt": True}
    stored = stored_gpt(config)
    stored["model.output_layer.weight"] = stored["model.output_layer.weight"][:-8]
    return sharded_gpt(folder / "head.nemo", config, stored, 2, 1)


def another_size(base: Path, folder: Path) -> Path:
    return rewritten(base, folder / "size.nemo", config={"ffn_hidden_size": 64})


# name -> (makes the archive from a valid one, the messages, whether `inspect` refuses it too)
BASES: dict[str, tuple[Callable[[Path, Path], Path], list[str], bool]] = {
    "wrong_family": (
        lambda base, folder: t5.tiny_base(folder / "t5.nemo"),
        ["t5.nemo: is a T5 checkpoint, but the stage is for GPT (llama)", "use a GPT base"],
        False,
    ),
    "missing_shard": (
        without_a_rank,
        ["ranks.nemo: the weights of 1 of 2 ranks are absent: tensor rank 1 of pipeline stage 0"],
        True,
    ),
    "truncated_tar": (truncated, ["cut.nemo: is truncated"], True),
    "truncated_gzip": (truncated_gzip, ["cut.nemo: is truncated"], True),
    "changed_gzip": (changed_gzip, ["changed.nemo: is truncated or not a .nemo archive (CRC check failed"], True),
    "code_in_the_weights": (
        with_code,
        ["code.nemo: model_weights.ckpt: cannot be read: holds ", "exec, which is not a tensor; it is not executed"],
        True,
    ),
    "member_outside": (outside("../evil"), ["member.nemo: '../evil': leads outside the folder"], True),
    "member_at_the_root": (outside("/tmp/evil"), ["member.nemo: '/tmp/evil': is not a relative name"], True),
    "weights_are_a_link": (
        link(WEIGHTS_NAME),
        ["member.nemo: model_weights.ckpt: is a symbolic link, which is not followed"],
        True,
    ),
    "configuration_is_a_link": (
        link(CONFIG_NAME),
        ["member.nemo: model_config.yaml: is a symbolic link, which is not followed"],
        True,
    ),
    "fewer_rows_than_tokens": (fewer_rows, ["rows.nemo: the tokenizer has", "the embedding has 100 rows"], False),
    "head_of_other_rows": (head_of_other_rows, ["head.nemo: output_layer.weight: has shape"], False),
    "no_tokenizer": (
        lambda base, folder: rewritten(base, folder / "mute.nemo", tokenizer=False),
        ["mute.nemo: tokenizer: the archive carries no tokenizer", "conversion_hf2nemo"],
        False,
    ),
    "sizes_of_another_model": (
        another_size,
        ["size.nemo: decoder.layers.0.mlp.linear_fc1.weight: has shape (96, 32), but the configuration implies (128, "],
        False,
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_training_refuses_a_base(name: str, tiny_base: Path, folder: Path) -> None:
    make, words, _ = BASES[name]
    base = make(tiny_base, folder)
    config = job_config(base, folder / "data", folder, {"run.model_family": "llama"})
    config["model"]["nemo_path"] = str(folder / "results/adapter.nemo")
    output = refused("train", config, folder)
    assert all(word in output for word in words), output
    assert not (folder.parent / "evil").exists()


@pytest.mark.parametrize("name", [name for name, (_, _, by_inspect) in BASES.items() if by_inspect])
def test_inspect_refuses_it_too(name: str, tiny_base: Path, tmp_path: Path, run: Run) -> None:
    make, words, _ = BASES[name]
    base = make(tiny_base, tmp_path)
    before = contents(tmp_path)
    message = run("inspect", base).refused()
    assert all(word in message for word in words), message
    assert contents(tmp_path) == before


# --- adapters ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the same shape with other weights."""
    return tiny_gpt_nemo(tmp_path_factory.mktemp("other") / "other.nemo", seed=5)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of another width with one more layer."""
    path = tmp_path_factory.mktemp("wide") / "wide.nemo"
    return tiny_gpt_nemo(path, hidden_size=48, num_hidden_layers=3)


def adapter_of(base: Path, path: Path, *, marked: bool) -> Path:
    """Save a random adapter of `base`; marked: with the base's fingerprint, which NeMo's adapters lack."""
    config = job_config(base, path.parent, path.parent)["model"] | {"adapter_tuning": BOTTLENECK}
    state = adapted(base, config)[1].state_dict()
    save_adapter(path, config | ({"base_fingerprint": load_base(base).fingerprint} if marked else {}), state)
    return path


def adapter_with_code(base: Path, folder: Path) -> Path:
    state: Any = {"model.language_model.encoder.layers.0:adapter_1": Call(exec, "raise SystemExit(0)")}
    save_adapter(folder / "bad.nemo", {"language_model_path": str(base), "adapter_tuning": BOTTLENECK}, state)
    return folder / "bad.nemo"


def cut_adapter(base: Path, folder: Path) -> Path:
    path = adapter_of(base, folder / "bad.nemo", marked=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return path


ADAPTERS: dict[str, list[str]] = {
    "another_base": ["bad.nemo: belongs to another base model (trained in ", "other.nemo", "use the one it was"],
    "another_size": [
        "bad.nemo: model.language_model.encoder.layers.0:adapter_1: holds",
        "(4, 48)",
        "layers.2:adapter_1: has no place in this model",
    ],
    "another_family": ["bad.nemo", "is an adapter for a T5 model, the base is a GPT model"],
    "code_in_the_weights": ["bad.nemo: model_weights.ckpt: cannot be read", "exec, which is not a tensor"],
    "truncated": ["bad.nemo: is truncated"],
    "a_base": ["base.nemo: is a base model, not an adapter"],
}


def bad_adapter(name: str, base: Path, folder: Path, request: pytest.FixtureRequest) -> Path:
    path = folder / "bad.nemo"
    if name == "another_base":
        return adapter_of(request.getfixturevalue("other_base"), path, marked=True)
    if name == "another_size":
        return adapter_of(request.getfixturevalue("wide_base"), path, marked=False)
    if name == "another_family":
        config = {"adapter_tuning": t5.BOTTLENECK, "language_model_path": "t5.nemo"}
        t5_state = adapted(t5.tiny_base(folder / "t5.nemo"), config)[1].state_dict()
        templates = job_config(base, folder, folder)["model"]["task_templates"]
        save_adapter(path, config | {"task_templates": templates}, t5_state)
        return path
    if name == "code_in_the_weights":
        return adapter_with_code(base, folder)
    return cut_adapter(base, folder) if name == "truncated" else base


@pytest.mark.parametrize("name", ADAPTERS)
def test_evaluation_refuses_an_adapter(
    name: str, tiny_base: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    adapter = bad_adapter(name, tiny_base, tmp_path, request)
    data = write_squad(tmp_path / "data")
    config = evaluation_config(tiny_base, adapter, data, tmp_path, compare_with_base=True)
    output = refused("evaluate", config, tmp_path)
    assert all(word in output for word in ADAPTERS[name]), output


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_does_not_go_on_from_it(
    name: str, tiny_base: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    adapter = bad_adapter(name, tiny_base, folder, request)
    config = job_config(tiny_base, folder / "data", folder, {"model.restore_path": str(adapter)})
    output = refused("train", config, folder)
    assert all(word in output for word in ADAPTERS[name]), output
