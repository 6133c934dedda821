# SPDX-License-Identifier: Apache-2.0
"""The tests' own processes: a port of their own, and a log however early one ends."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.jobs import Job, run_process
from tests.world import reserved_port


class EndsOnArrival:
    """Ends the process that it is sent to with status 3."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (3,)


@pytest.mark.unit
def test_a_reserved_port_is_for_the_store_alone() -> None:
    with reserved_port() as port:
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind(("127.0.0.1", port))
        server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        client = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=30))
        server.set("key", "value")
        assert client.get("key") == b"value"


@pytest.mark.integration
def test_a_process_that_ends_before_its_function_has_a_log(tmp_path: Path) -> None:
    assert run_process(print, (EndsOnArrival(),), tmp_path / "log") == Job(3, "")
