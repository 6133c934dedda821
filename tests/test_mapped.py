# SPDX-License-Identifier: Apache-2.0
"""A mapped file that is truncated in place ends the process with a message naming it, in any reading thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.files.mapped import map_bytes
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
