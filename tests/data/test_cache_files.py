# SPDX-License-Identifier: Apache-2.0
"""Cache files: damaged or hostile ones are recreated; permissions, full disks, concurrent jobs, old files."""

from __future__ import annotations

import json
import os
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.cache import FOLDER_NAME, cache_folders
from nemo_launcher.data.cache_file import DamagedCacheError, SampleCache, open_cache
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.families.gpt.samples import GPTSample
from tests.caches import SQUAD, ByteTokenizer, files_in, gpt_encoder, load, without_record, write_data

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    return write_data(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "first", "middle", "description", "footer"])
def test_a_damaged_cache_is_made_again(damage: str, data: list[Path], tmp_path: Path) -> None:
    wanted = list(load(data, gpt_encoder(), tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    places = {"first": 0, "middle": len(content) // 2, "description": len(content) - 60, "footer": len(content) - 1}
    if damage in places:
        content[places[damage]] ^= 1
    damaged = {"empty": b"", "cut": content[:-100], "longer": content + b"\0"}.get(damage, bytes(content))
    path.write_bytes(damaged)
    lines: list[str] = []
    assert list(load(data, gpt_encoder(), tmp_path / "cache", lines.append)) == wanted
    assert lines == [f"{path} is damaged; the data is tokenized again"]
    lines.clear()
    assert list(load(data, gpt_encoder(), tmp_path / "cache", lines.append)) == wanted
    assert lines == []


def test_a_pipe_in_place_of_a_cache_is_not_waited_for(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(load(data, gpt_encoder(), tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    os.mkfifo(path)
    original = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        assert not self.is_fifo(), "opening it would wait for a writer"
        return original(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    lines: list[str] = []
    samples = load(data, gpt_encoder(), tmp_path / "cache", lines.append)
    assert without_record(samples) == without_record(wanted)
    assert path.is_fifo()
    assert f"no data cache in {tmp_path / 'cache'}: is a device or pipe, not a file" in lines


def test_no_byte_of_a_cache_may_change(data: list[Path], tmp_path: Path) -> None:
    load(data, gpt_encoder(), tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content, paths = path.read_bytes(), [str(file) for file in data]
    generator = random.Random(1)
    places = [*range(len(content) - 40, len(content)), *(generator.randrange(len(content)) for _ in range(400))]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedCacheError):
            open_cache(path, paths, 1000, GPTSample)


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "kind": lambda d: d.update(kind="Other"),
    "kind_list": lambda d: d.update(kind=[]),
    "remarks": lambda d: d.update(remarks=[1]),
    "no_tables": lambda d: d.pop("tables"),
    "table_missing": lambda d: d["tables"].pop("line"),
    "table_unknown": lambda d: d["tables"].update(more=["int64", 1, 0]),
    "dtype": lambda d: d["tables"].update(tokens=["object", 1, 0]),
    "count": lambda d: d["tables"]["line"].__setitem__(1, 2**62),
    "negative": lambda d: d["tables"]["line"].__setitem__(1, -1),
    "offset": lambda d: d["tables"]["bounds"].__setitem__(2, 2**40),
    "tokens_as_bounds": lambda d: d["tables"].update(bounds=["int64", d["tables"]["bounds"][1], 0]),
    "no_samples": lambda d: [table.__setitem__(1, 0) for table in d["tables"].values()],
    "members": lambda d: d["tables"].update(members=d["tables"]["shared"]),
    "one_prefix_table": lambda d: d["tables"].pop("shared"),
    "floats": lambda d: d["tables"]["line"].__setitem__(1, 1.5),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_numbers_out_of_bounds_are_not_used_though_the_checksum_is_right(
    case: str, data: list[Path], tmp_path: Path
) -> None:
    wanted = list(load(data, gpt_encoder(), tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    size, description_size = struct.unpack("<QQ", content[-20:-4])
    description = json.loads(content[size - description_size : size])
    HOSTILE[case](description)
    text = json.dumps(description).encode()
    body = content[: size - description_size] + text
    body += content[-28:-20] + struct.pack("<QQ", len(body), len(text))
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))
    lines: list[str] = []
    assert list(load(data, gpt_encoder(), tmp_path / "cache", lines.append)) == wanted
    assert lines == [f"{path} is damaged; the data is tokenized again"]


def test_tokens_that_the_tokenizer_does_not_have_are_not_used(data: list[Path], tmp_path: Path) -> None:
    load(data, gpt_encoder(tokenizer=ByteTokenizer(first=70_000)), tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    paths = [str(file) for file in data]
    assert len(open_cache(path, paths, 1000, GPTSample, vocab_size=70_256)) == 40
    with pytest.raises(DamagedCacheError):
        open_cache(path, paths, 1000, GPTSample, vocab_size=70_000)


def test_a_cache_is_no_more_open_than_the_data(data: list[Path], tmp_path: Path) -> None:
    data[1].chmod(0o600)
    load(data, gpt_encoder(), tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_caches_lie(tmp_path: Path) -> None:
    beside, results = tmp_path / "data" / FOLDER_NAME, tmp_path / "results" / FOLDER_NAME
    assert cache_folders(None, tmp_path / "data" / "a.jsonl", tmp_path / "results") == [beside, results]
    assert cache_folders("/caches", tmp_path / "a.jsonl", tmp_path) == [Path("/caches")]
    assert cache_folders(False, tmp_path / "a.jsonl", tmp_path) == []


def test_a_folder_that_takes_no_files_is_passed_over(data: list[Path], tmp_path: Path) -> None:
    closed, open_, lines = tmp_path / "closed", tmp_path / "open", []
    closed.write_text("a file where a folder should be")
    for _ in range(2):
        samples = load(data, encoder := gpt_encoder(), open_, lines.append, folders=[closed, open_])
        assert isinstance(samples, SampleCache)
    assert encoder.tokenizer.num_encoded == 0
    assert len(lines) == 1
    assert f"no data cache in {closed}" in lines[0]
    assert isinstance(load(data, gpt_encoder(), closed), list)
    assert isinstance(load(data, gpt_encoder(), closed, folders=[]), list)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_read_but_not_written(data: list[Path], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    load(data, gpt_encoder(), closed)
    closed.chmod(0o555)
    encoder = gpt_encoder()
    load(data, encoder, closed)
    assert encoder.tokenizer.num_encoded == 0
    assert isinstance(load(data, gpt_encoder(add_eos=False), closed), list)
    closed.chmod(0o755)


def test_a_full_disk_leaves_nothing_and_stops_nothing(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nemo_launcher.files.atomic.flush_to_disk", full)
    lines: list[str] = []
    samples = load(data, gpt_encoder(), tmp_path / "cache", lines.append)
    assert samples == encode_files([str(path) for path in data], [SQUAD], gpt_encoder())
    assert lines == [f"no data cache in {tmp_path / 'cache'}: No space left on device"]
    assert files_in(tmp_path / "cache") == []


def test_two_jobs_at_once_both_get_the_samples(data: list[Path], tmp_path: Path) -> None:
    barrier, found = threading.Barrier(2), []

    class Meeting(ByteTokenizer):
        def text_to_ids(self, text: str) -> list[int]:
            if self.num_encoded == 0:  # neither has found a cache
                barrier.wait(timeout=60)
            return super().text_to_ids(text)

    def job() -> None:
        found.append(list(load(data, gpt_encoder(tokenizer=Meeting()), tmp_path / "cache")))

    jobs = [threading.Thread(target=job) for _ in range(2)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    wanted = without_record(encode_files([str(path) for path in data], [SQUAD], gpt_encoder()))
    assert found == [wanted, wanted]
    assert len(files_in(tmp_path / "cache")) == 1


def test_what_nobody_used_for_a_month_goes_when_a_cache_is_written(data: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    old, used = time.time() - 31 * 24 * 3600, time.time() - 29 * 24 * 3600
    unused, in_use = f"{'0' * 64}.samples", f"{'1' * 64}.samples"
    for name, stamp in [(unused, old), ("blood.samples", old), (in_use, used), ("old.txt", old)]:
        (cache / name).touch()
        os.utime(cache / name, (stamp, stamp))
    load(data, gpt_encoder(), cache)
    (mine,) = set(files_in(cache)) - {in_use, "blood.samples", "old.txt"}  # the user's own files stay
    os.utime(cache / mine, (old, old))
    load(data, gpt_encoder(), cache)  # it is used
    load(data, gpt_encoder(add_eos=False), cache)
    assert len(files_in(cache)) == 5
    assert mine in files_in(cache)
