# SPDX-License-Identifier: Apache-2.0
"""Start the ranks of one pod: `start_ranks.py NODES DEVICES COMMAND...`; JOB_COMPLETION_INDEX is the pod's index.

Signals are forwarded to the ranks. The exit status is that of the first rank that fails. Only the standard library is
needed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE_S = 60.0
"""Seconds that the other ranks may run on after one has failed, and again after SIGTERM, before they are killed."""
POLL_S = 0.2


def rank_environment(index: int, local_rank: int, nodes: int, devices: int) -> dict[str, str]:
    """Return torch.distributed's variables of one rank; the pod already sets MASTER_ADDR and MASTER_PORT."""
    return {
        "RANK": str(index * devices + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(nodes * devices),
        "LOCAL_WORLD_SIZE": str(devices),
    }


def run(nodes: int, devices: int, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the ranks until all have ended; return 0 or the status of the first that failed (128 + n for signal n)."""
    index = int(environment.get("JOB_COMPLETION_INDEX", "0"))
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    for local_rank in range(devices):
        own = {**environment, **rank_environment(index, local_rank, nodes, devices)}
        ranks.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=own))
    return wait(ranks, GRACE_S)


def wait(ranks: Sequence[subprocess.Popen[bytes]], grace_s: float) -> int:
    """Wait for all ranks. After a failure the others get `grace_s` seconds before SIGTERM, and again before SIGKILL."""
    first = 0
    failed_at = None
    asked = False
    while True:
        statuses = [rank.poll() for rank in ranks]
        if not first:
            first = next((status for status in statuses if status), 0)
            failed_at = time.monotonic() if first else None
        if None not in statuses:
            return 128 - first if first < 0 else first
        left = [rank for rank, status in zip(ranks, statuses, strict=True) if status is None]
        if failed_at is not None and time.monotonic() - failed_at > grace_s:
            for rank in left:
                rank.send_signal(signal.SIGKILL if asked else signal.SIGTERM)
            asked, failed_at = True, time.monotonic()
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], os.environ))
