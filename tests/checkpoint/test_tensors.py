# SPDX-License-Identifier: Apache-2.0
"""Weight files that torch.save did not write, or that were modified: refused, and nothing in them is run."""

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

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit

WEIGHTS = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": {"d": torch.ones(2)}}


def saved(value: Any = WEIGHTS) -> dict[str, bytes]:
    """Return the entries of `value` saved by torch.save."""
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as entries:
        return {name: entries.read(name) for name in entries.namelist()}


def read(folder: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> dict[str, Any]:
    """Read an archive whose weights are a zip of these entries."""
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
    """Pickles as a call of `function` that unpickling would make."""

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
    assert "which is not a tensor; it is not executed" in refused(tmp_path, entries)
    assert not proof.exists()
    with contextlib.suppress(AttributeError):  # its result is not a storage
        pickle.loads(entries[name])
    assert proof.exists()  # unpickling does make the call


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
    assert "not stored like those of torch.save" in refused(
        tmp_path, saved({"a": torch.zeros(9999)}), zipfile.ZIP_DEFLATED
    )


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    entries = saved()
    (name,) = (name for name in entries if name.endswith("byteorder"))
    assert "big-endian" in refused(tmp_path, entries | {name: b"big"})


@pytest.mark.parametrize("part", ["pickle", "zip"])
def test_changed_bytes_never_crash(part: str, tmp_path: Path) -> None:
    """With any change the file is read or refused, even with a valid zip checksum of the pickle."""
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


# --- what would take time or memory, or other bytes -----------------------------------------------------------------


def tensor(offset: Any, size: Any, stride: Any, numbers: Any = 12, dtype: bytes = b"FloatStorage") -> bytes:
    """Return a hand-written pickle of {'a': a view of storage 0}."""

    def literal(value: Any) -> bytes:
        if isinstance(value, tuple):
            return b"(" + b"".join(map(literal, value)) + b"t"
        if isinstance(value, int):
            return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
        return pickle.dumps(value, protocol=2)[2:-1]

    pid = b"(X\x07\x00\x00\x00storagectorch\n" + dtype + b"\n" + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage = pid + literal(numbers) + b"tQ"
    arguments = b"(" + storage + literal(offset) + literal(size) + literal(stride) + b"\x89N" + b"t"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def with_pickle(content: bytes) -> dict[str, bytes]:
    entries = saved({"a": torch.arange(12.0)})
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    return entries | {name: content}


def test_a_pickle_by_hand_is_read(tmp_path: Path) -> None:
    read_back = read(tmp_path, with_pickle(tensor(2, (2, 3), (5, 1))))
    assert read_back["a"].tolist() == [[2, 3, 4], [7, 8, 9]]
    assert read(tmp_path, with_pickle(tensor(0, (0, 10**9), (1, 1))))["a"].shape == (0, 10**9)


@pytest.mark.parametrize(
    "content",
    [
        tensor(0, (10**9,), (0,)),
        tensor(0, (2**62, 2**62), (0, 0)),
        tensor(0, (12,), (-1,)),
        tensor(-1, (3,), (1,)),
        tensor(1, (12,), (1,)),
        tensor(0, (12,), (2**61,)),
        tensor(0, (2, 2), (1,)),
        tensor(0, 12, 1),
        tensor(0, (1.5,), (1,)),
        tensor(0, (1,) * 9, (1,) * 9),
        tensor(0, (24,), (1,), numbers=24),
        tensor(0, (6,), (1,), dtype=b"DoubleStorage"),
        tensor(0, (12,), (1,), numbers=-12),
        tensor(0, (12,), (1,), numbers="12"),
        tensor(0, (12,), (1,), dtype=b"Tensor"),
    ],
)
def test_a_view_outside_its_storage_is_refused(content: bytes, tmp_path: Path) -> None:
    refused(tmp_path, with_pickle(content))


PAIRS = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(200))
BOMBS = {
    "a key whose hash takes for ever": b"\x80\x02})" + PAIRS + b"Ns.",
    "tuples in tuples": b"\x80\x02}X\x01\x00\x00\x00a)" + PAIRS + b"s.",
    "dictionaries twice in dictionaries": b"\x80\x02}"
    + b"".join(
        b"q" + bytes([n]) + b"0}X\x01\x00\x00\x00ah" + bytes([n]) + b"sX\x01\x00\x00\x00bh" + bytes([n]) + b"s"
        for n in range(60)
    )
    + b".",
    "a dictionary in itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a long that is none": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "the memo of another file": b"\x80\x02j\xff\xff\xff\xff.",
    "marks alone": b"\x80\x02" + b"(" * 100_000 + b".",
    "an extension code": b"\x80\x02\x82\x01.",
    "protocol 0": b"cos\nsystem\n(S'true'\ntR.",
    "an instance": b"(S'true'\nios\nsystem\n.",
    "no end": b"\x80\x02}" * 1000,
    "attributes of a list": b"\x80\x02]}X\x01\x00\x00\x00aNsb.",
    "a name as a value": b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\ns.",
    "an argument of a dictionary": b"\x80\x02ccollections\nOrderedDict\n(]tR.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_grows_is_refused_at_once(name: str, tmp_path: Path) -> None:
    entries = with_pickle(BOMBS[name])
    with pytest.raises(UserError, match=r"a\.nemo: model_weights\.ckpt"):
        read(tmp_path, entries)


def test_keys_of_one_hash_take_no_quadratic_time(tmp_path: Path) -> None:
    content = pickle.dumps({number * (2**61 - 1): None for number in range(1, 10_002)}, protocol=2)
    assert "keys that are not text" in refused(tmp_path, with_pickle(content))


def test_a_changed_number_is_seen(tmp_path: Path) -> None:
    """The zip's checksum detects it; torch.load does not verify it."""
    content = bytearray(_zipped(saved()))
    place = bytes(content).index(torch.arange(12.0).numpy().tobytes()) + 9
    content[place] ^= 4
    with pytest.raises(UserError, match="the checksum of 'data/0' is wrong"):
        read_bytes(tmp_path, bytes(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in saved().items():
            file.writestr(name, content)
        file.writestr(next(name for name in saved() if name.endswith("data/0")), b"\0" * 48)
    with pytest.raises(UserError, match="twice"):
        read_bytes(tmp_path, stream.getvalue())


def test_an_entry_in_another_is_refused(tmp_path: Path) -> None:
    content = bytearray(_zipped(saved()))
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    content[second + 42 : second + 46] = content[directory + 42 : directory + 46]  # offset of its header
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path, bytes(content))


@pytest.mark.parametrize("end", [b"x", b"\0" * 30, b"PK\5\6" + b"\0" * 18])
def test_what_lies_behind_the_zip_is_refused(end: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(tmp_path, _zipped(saved()) + end)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "model.decoder.layers." + "9" * 5000 + ".x"])
def test_names_that_no_weight_has_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it holds the name") as error:
        read(tmp_path, saved({name: torch.ones(1)}))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 500


def test_what_transformer_engine_adds_is_left_out(tmp_path: Path) -> None:
    value = {"a": torch.ones(2), "b._extra_state": None, "c._extra_state": io.BytesIO(b"scales")}
    assert read(tmp_path, saved(value)).keys() == {"a"}
    with pytest.raises(UserError, match="a NoneType as 'b'"):
        read(tmp_path, saved({"b": None}))
