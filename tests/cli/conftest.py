# SPDX-License-Identifier: Apache-2.0
"""Runs the console command's verbs in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nemo_launcher.cli import main
from tests.engine import BOTTLENECK, adapted
from tests.jobs import job_config


class Result(NamedTuple):
    """Exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The records printed by a successful verb."""
        assert self.status == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]

    def refused(self) -> str:
        """The error message of a refused command, which printed no results and no traceback."""
        assert (self.status, self.out) == (2, "")
        assert "Traceback" not in self.err
        return self.err


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb."""

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # raised by argparse
            status = int(error.code or 0)
        output = capsys.readouterr()
        return Result(status, output.out, output.err)

    return call


@pytest.fixture(scope="session")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny base."""
    from nemo_launcher.adapters.archive import save_adapter

    folder = tmp_path_factory.mktemp("adapter")
    config = job_config(tiny_base, folder, folder)["model"] | {"adapter_tuning": BOTTLENECK}
    base, adapters = adapted(tiny_base, config)
    save_adapter(folder / "a.nemo", config | {"base_fingerprint": base.fingerprint}, adapters.state_dict())
    return folder / "a.nemo"
