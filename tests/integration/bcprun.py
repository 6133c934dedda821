# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Base Command Platform's bcprun with exactly its options; torchrun starts the ranks.

As on the platform, a rank has the environment of its node's container instead of the caller's, plus the `--env`
arguments. With BCPRUN_SHOW in the environment, the options are printed as JSON and nothing is started.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys

FROM_THE_CONTAINER = ("PATH", "HOME", "LANG", "OMP_NUM_THREADS")


def parse() -> argparse.Namespace:
    """Parse the options; refuse what bcprun refuses."""
    parser = argparse.ArgumentParser(prog="bcprun", allow_abbrev=False)
    parser.add_argument("-n", "--nnodes", type=int, default=1)
    parser.add_argument("-p", "--npernode", type=int, default=1)
    parser.add_argument("-e", "--env", action="append", default=[])
    parser.add_argument("-w", "--workdir", default=None)
    parser.add_argument("-no_redirect", action="store_true")
    parser.add_argument("-c", "--cmd", required=True)
    options = parser.parse_args()
    for setting in options.env:
        if "=" not in setting:
            parser.error(f"--env {setting}: not KEY=VALUE")
    available = int(os.environ.get("NGC_ARRAY_SIZE", "1"))
    if not 1 <= options.nnodes <= available:
        parser.error(f"--nnodes {options.nnodes}: this job has {available}")
    return options


def start(options: argparse.Namespace, node: int, port: int) -> subprocess.Popen[bytes]:
    """Start the ranks of one node."""
    environment = {name: os.environ[name] for name in FROM_THE_CONTAINER if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("NGC_")}
    environment |= {"NGC_ARRAY_INDEX": str(node)}
    environment |= dict(setting.split("=", 1) for setting in options.env)
    rendezvous = ["--nnodes", str(options.nnodes), "--node-rank", str(node), "--master-port", str(port)]
    ranks = ["--nproc-per-node", str(options.npernode), "--master-addr", "127.0.0.1", "--no-python"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, *ranks, "bash", "-c", options.cmd]
    return subprocess.Popen(command, env=environment, cwd=options.workdir)


def main() -> int:
    """Run the command on every rank; return the status of the first failure."""
    options = parse()
    if "BCPRUN_SHOW" in os.environ:
        print(json.dumps(vars(options)))
        return 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    statuses = [node.wait() for node in [start(options, node, port) for node in range(options.nnodes)]]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
