# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in one command of minutes:

    python benchmarks/gpu.py --out FOLDER
    python benchmarks/gpu.py --out FOLDER --device cpu --small   # without a GPU: whether the benchmark works

Each row is printed as soon as it is measured, and FOLDER/gpu.json is rewritten after each section. A case that fails is
a row with its error. `--only` takes names of sections, separated by commas. Weights and samples are random.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_launcher.runtime.startup import quick_imports

with quick_imports():
    import torch

    from benchmarks import gpu_jobs, gpu_memory, gpu_operators, gpu_parity, gpu_peers, gpu_speed
    from benchmarks.gpu_models import Bench, Row
    from nemo_launcher.files.atomic import write_text
    from nemo_launcher.megatron import parallel
    from nemo_launcher.megatron.sizes import ONE_RANK
    from nemo_launcher.runtime.quiet import quiet_libraries

SECTIONS = {
    "machine": gpu_speed.machine,
    "parity": gpu_parity.parity,
    "operators": gpu_operators.operators,
    "attention": gpu_speed.attention,
    "training": gpu_speed.training,
    "peers": gpu_peers.peers,
    "memory": gpu_memory.memory,
    "generation": gpu_speed.generation,
    "jobs": gpu_jobs.jobs,
    "utilization": gpu_speed.utilization,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    options = parser.parse_args(arguments)
    unknown = set(options.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}; the sections are {', '.join(SECTIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use: add --device cpu --small to test the benchmark")
    return options


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Measure the sections; return their rows."""
    quiet_libraries()
    options.out.mkdir(parents=True, exist_ok=True)
    parallel.initialize(ONE_RANK)
    bench = Bench(torch.device(options.device), options.small, options.out)
    started, found = time.monotonic(), {}
    for name in options.only.split(","):
        rows: list[Row] = []
        for row in SECTIONS[name](bench):
            rows.append(row)
            values = "  ".join(f"{key}={_shown(value)}" for key, value in row.items())
            print(f"[{time.monotonic() - started:4.0f} s] {name}: {values}", flush=True)
        found[name] = rows
        bench.forget_peak()
        write_text(options.out / "gpu.json", json.dumps(found, indent=1) + "\n")
    wrong = [row for row in found.get("parity", []) if not row.get("agrees")]
    if "parity" in found:
        print(f"parity: {len(found['parity']) - len(wrong)} cases agree, {len(wrong)} do not")
    return found


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
