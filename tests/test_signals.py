# SPDX-License-Identifier: Apache-2.0
"""Signals to a job's process, each test in a separate process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = ("train", "evaluate", "convert_hf2nemo", "prepare_data")


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that watches signals; `send` sends a signal to its process."""
    heading = (
        "import os, signal, sys\nfrom nemo_launcher.runtime import signals\nsignals.watch()\n"
        "send = lambda name: os.kill(os.getpid(), getattr(signal, 'SIG' + name))\n"
    )
    command = [sys.executable, "-c", heading + code]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_cleans_up_and_ends_with_its_status(name: str) -> None:
    code = f"try:\n    send({name!r})\nfinally:\n    send('TERM')\n    send('TERM')\n    print('cleaned up')\n"
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, f"SIG{name}"), "cleaned up\n", "")


def test_the_warning_is_remembered_and_kills_nothing() -> None:
    done = run("send('USR1')\nsend('USR1')\nsignals.defer()\nprint(signals.received() == signal.SIGUSR1)")
    assert (done.returncode, done.stdout) == (0, "True\n")


@pytest.mark.parametrize("order", [("USR1", "TERM"), ("TERM", "USR1"), ("TERM", "TERM", "HUP"), ("HUP", "USR1")])
def test_deferred_signals_are_remembered_and_an_end_counts_most(order: tuple[str, ...]) -> None:
    sent = "".join(f"send({name!r})\n" for name in order)
    done = run(f"signals.defer()\n{sent}print(signal.Signals(signals.received()).name)")
    ending = next(name for name in order if name != "USR1")
    assert (done.returncode, done.stdout) == (0, f"SIG{ending}\n")


def test_a_forked_process_ends_on_term_though_its_parent_would_go_on() -> None:
    code = """
signals.defer()
ready, tell = os.pipe()
child = os.fork()
if not child:
    os.write(tell, b"1")
    signal.pause()
    signal.pause()
os.read(ready, 1)
os.kill(child, signal.SIGUSR1)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).stdout == f"{-signal.SIGTERM}\n"


def test_a_data_worker_ends_on_term_from_its_parent_alone() -> None:
    code = """
signals.defer()
ready, tell = os.pipe()
child = os.fork()
if not child:
    signals.heed_parent_alone()
    os.write(tell, b"1")
    while True:
        signal.pause()
os.read(ready, 1)
for _ in range(2):  # Slurm sends it twice
    if not (other := os.fork()):
        os.kill(child, signal.SIGTERM)
        os._exit(0)
    os.waitpid(other, 0)
os.kill(child, signal.SIGUSR1)
print(os.waitpid(child, os.WNOHANG)[0])
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).stdout == f"0\n{-signal.SIGKILL}\n"


def test_an_ignored_hangup_stays_ignored() -> None:
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsignals.watch()\nsend('HUP')\nprint(signals.received())"
    assert run(code).stdout == "0\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_watches_before_its_imports(script: str) -> None:
    """The first slow import is replaced by a signal."""
    path = REPOSITORY / f"launcher_scripts/{script}.py"
    code = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "omegaconf":
            os.kill(os.getpid(), signal.SIGUSR1)
            from nemo_launcher.runtime import signals
            print(signals.received() == signal.SIGUSR1, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
for name in [name for name in sys.modules if name.startswith("omegaconf")]:
    del sys.modules[name]
sys.meta_path.insert(0, Finder())
sys.argv = [{str(path)!r}, "none.yaml"]
runpy.run_path({str(path)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "True\n"), done.stderr
