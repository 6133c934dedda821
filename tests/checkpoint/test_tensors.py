"""Weight files that torch.save did not write, or that somebody changed: refused, and nothing in them is run."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit

WEIGHTS = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": {"d": torch.ones(2)}}


def saved(value: Any = WEIGHTS) -> dict[str, bytes]:
    """Return the entries of what torch.save makes of `value`."""
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as entries:
        return {name: entries.read(name) for name in entries.namelist()}


def read(folder: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> dict[str, Any]:
    """Read an archive whose weights are the zip of these entries."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return read_bytes(folder, stream.getvalue())


def read_bytes(folder: Path, content: bytes) -> dict[str, Any]:
    write_archive(folder / "a.nemo", {"a": 1}, {WEIGHTS_NAME: content})
    with Archive(folder / "a.nemo") as archive:
        return read_tensors(archive, WEIGHTS_NAME)


def refused(folder: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with pytest.raises(UserError, match=r"a\.nemo: model_weights\.ckpt: cannot be read") as error:
        read(folder, entries, compression)
    return str(error.value)


def test_what_torch_saved_is_read(tmp_path: Path) -> None:
    torch.testing.assert_close(read(tmp_path, saved()), WEIGHTS, rtol=0, atol=0)


# --- code -------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call of `function`, which unpickling would make."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", ["value", "nested", "key", "storage"])
def test_a_call_is_not_made(place: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    call: Any = Call(exec, f"import pathlib; pathlib.Path({str(proof)!r}).touch()")
    value = {
        "value": {"a": call},
        "nested": {"a": torch.ones(2), "b": OrderedDict(c=[call])},
        "key": {"a": torch.ones(2), ("b", call): 1},
        "storage": {"a": Call(torch._utils._rebuild_tensor_v2, call, 0, (1,), (1,), False, OrderedDict())},
    }[place]
    entries = saved()
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    entries[name] = pickle.dumps(value, protocol=2)
    assert "which is no tensor; it is not executed" in refused(tmp_path, entries)
    assert not proof.exists()
    with contextlib.suppress(AttributeError):  # what it returns is no storage
        pickle.loads(entries[name])
    assert proof.exists()  # it would have been made


def _zipped(entries: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("function", [eval, getattr, __import__, torch.load, io.open, pickle.loads])
def test_no_function_is_given(function: Callable[..., Any], tmp_path: Path) -> None:
    entries = saved()
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    entries[name] = pickle.dumps({"a": function}, protocol=2)
    assert "it is not executed" in refused(tmp_path, entries)


# --- damage -----------------------------------------------------------------------------------------------------


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    entries = saved({"a": torch.arange(12.0)})
    (name,) = (name for name in entries if name.endswith("data/0"))
    assert "out of bounds" in refused(tmp_path, entries | {name: entries[name][:40]})
    refused(tmp_path, entries | {name: entries[name][:41]})
    del entries[name]
    refused(tmp_path, entries)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    assert "not stored as torch.save does" in refused(tmp_path, saved({"a": torch.zeros(9999)}), zipfile.ZIP_DEFLATED)


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    entries = saved()
    (name,) = (name for name in entries if name.endswith("byteorder"))
    assert "big-endian" in refused(tmp_path, entries | {name: b"big"})


@pytest.mark.parametrize("part", ["pickle", "zip"])
def test_changed_bytes_never_crash(part: str, tmp_path: Path) -> None:
    """Whatever is changed, the file is read or refused; zip's checksum of the pickle is right all the same."""
    generator, entries = random.Random(0), saved()
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    refusals = 0
    for _ in range(300):
        content = bytearray(entries[name] if part == "pickle" else _zipped(entries))
        start = 0 if part == "pickle" else content.index(b"PK\x01\x02")
        for _ in range(generator.choice([1, 2, 5])):
            content[generator.randrange(start, len(content))] = generator.randrange(256)
        try:
            if part == "pickle":
                read(tmp_path, entries | {name: bytes(content)})
            else:
                read_bytes(tmp_path, bytes(content))
        except UserError:
            refusals += 1
    assert 100 < refusals < 300
