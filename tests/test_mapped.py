# SPDX-License-Identifier: Apache-2.0
"""A mapped file that is truncated in place ends the process with a message naming it, in any reading thread."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.files import mapped as mapped_files
from nemo_launcher.files.mapped import map_bytes, release_pages
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit

READ = """
import io, os, sys, torch
from pathlib import Path
from nemo_launcher.files.mapped import map_bytes
torch.set_num_threads(2)
path, count = Path(sys.argv[1]), 1 << 22
path.write_bytes(bytes(count))
numbers = torch.from_numpy(map_bytes(path, 0, count)).view(torch.float32)
map_bytes(path.with_name("whole"), 0, 1)
os.truncate(path, 5000)
{reads}
print("not reached")
"""


@pytest.mark.parametrize("reads", ["torch.exp(numbers)", "numbers.numpy().sum()", "torch.save(numbers, io.BytesIO())"])
def test_the_file_is_named(reads: str, tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"x")
    path = tmp_path / "base.nemo"
    command = [sys.executable, "-c", READ.format(reads=reads), str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{path}: was truncated while in use; copy it again and restart\n"


def test_a_file_that_is_shorter_already_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.nemo"
    path.write_bytes(bytes(10))
    with pytest.raises(UserError, match="was truncated while it was read: it has 10 of 12 bytes"):
        map_bytes(path, 4, 8)
    assert map_bytes(path, 4, 6).shape == (6,)


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 1024)
    mapped = map_bytes(path, 100, 200_000)
    wanted = mapped.copy()
    resident = pages_of(path)
    assert resident >= 48
    release_pages(mapped.ctypes.data, mapped.nbytes)
    assert pages_of(path) <= 2  # those that the file shares with others at its ends
    assert np.array_equal(mapped, wanted)
    release_pages(mapped.ctypes.data + 8192, 4096 * 10)
    assert np.array_equal(mapped, wanted)


def test_other_memory_keeps_its_values(tmp_path: Path) -> None:
    """Releasing it would replace the values by zeros."""
    path = tmp_path / "numbers"
    path.write_bytes(b"1" * 100_000)
    mapped = map_bytes(path, 0, 100_000)
    address = mapped.ctypes.data
    own = np.arange(100_000)
    release_pages(own.ctypes.data, own.nbytes)
    assert np.array_equal(own, np.arange(100_000))
    del mapped
    gc.collect()
    assert address not in mapped_files._mappings


def pages_of(path: Path) -> int:
    """Return the number of resident pages of a mapped file in this process."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    kib = 0
    for line in lines:
        if line.endswith(str(path)):
            kib += next(int(other.split()[1]) for other in lines if other.startswith("Rss:"))
    return kib // 4
