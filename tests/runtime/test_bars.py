# SPDX-License-Identifier: Apache-2.0
"""Progress bars fit the terminal that shows them, a pipe and a notebook."""

from __future__ import annotations

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from nemo_launcher.runtime import bars
from nemo_launcher.runtime.progress_file import TERMINAL_VARIABLE
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit
PACKAGE = REPOSITORY / "nemo_launcher"
DRAW = """
from nemo_launcher.runtime.progress import Progress
with Progress("adapter training", 12345, done=120, unit="step") as progress:
    for loss in ("1.2345", "10.123"):
        progress.advance(1, loss=loss, val_loss="2.3456", **{"tokens/s": "12,345"})
        progress._bar.refresh()
"""


def terminal(columns: int) -> tuple[int, int]:
    """Return the two ends of a terminal of this width."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return master, slave


def drawn(output: bytes) -> list[str]:
    """Return the states of the line that a terminal has shown."""
    return [line for line in re.split("[\\r\\n]", output.decode()) if line.strip()]


ANSWERS = """
from nemo_launcher.evaluation.results import Printed
from nemo_launcher.runtime.bars import new_bar
printed = Printed(lambda answer: answer["prediction"])
with new_bar(2, "sample") as bar:
    for place, answer in enumerate(("politics", "sport")):
        printed.take(place, {"prediction": answer})
        bar.update()
"""


def test_answers_have_lines_of_their_own() -> None:
    master, slave = terminal(80)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", ANSWERS], stdout=slave, stderr=slave, env=environment, timeout=60, check=True)
    shown = os.read(master, 65536).decode()
    os.close(slave)
    os.close(master)
    assert "0/2" in shown
    first, second, _ = (line.rstrip("\r").rpartition("\r")[2] for line in shown.split("\n"))
    assert (first, second) == ("politics", "sport")


@pytest.mark.parametrize("columns", [20, 60, 80, 120, 200])
@pytest.mark.parametrize("through", ["pipe", "terminal"])
def test_a_bar_fits_the_terminal(columns: int, through: str) -> None:
    """A job writes to its launcher's pipe, and knows the terminal by its name."""
    master, slave = terminal(columns)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NEMO_LAUNCHER_PROGRESS": "bar"}
    environment.pop("COLUMNS", None)
    if through == "pipe":
        environment[TERMINAL_VARIABLE] = os.ttyname(slave)
    stream = subprocess.PIPE if through == "pipe" else slave
    done = subprocess.run([sys.executable, "-c", DRAW], stderr=stream, env=environment, timeout=60, check=True)
    lines = drawn(done.stderr if through == "pipe" else os.read(master, 65536))
    os.close(slave)
    os.close(master)
    assert max(map(len, lines)) < columns
    assert "122/12345" in lines[-1]
    if columns >= 60:
        assert "loss=10.123" in lines[-1]
    if columns >= 120:
        assert lines[-1].startswith("adapter training:")
        assert len(lines[-1]) == columns - 1


def test_an_unknown_terminal_has_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv(TERMINAL_VARIABLE, "/dev/nowhere")
    assert bars.columns(io.StringIO()) == 79


def test_a_notebook_has_a_bar_and_a_pipe_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw() -> str:
        with bars.new_bar(3, "sample") as bar:
            bar.update(3)
            bar.refresh()
        return capsys.readouterr().err

    before = set(threading.enumerate())  # another library's bar may have started a thread
    assert draw() == ""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    shown = draw()
    assert "3/3" in shown
    assert max(map(len, drawn(shown.encode()))) <= bars.NOTEBOOK_COLUMNS
    assert set(threading.enumerate()) == before


def test_every_bar_comes_from_one_place() -> None:
    users = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if imports_tqdm(path)]
    assert users == ["runtime/bars.py"]


def imports_tqdm(path: Path) -> bool:
    return re.search(r"^\s*(?:import|from) tqdm\b", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
