# SPDX-License-Identifier: Apache-2.0
"""Profile of one training step on our side, in one thread:

    python benchmarks/training_profile.py --base BASE.nemo --data SQUAD_V1.json --dtype fp32

Prints torch's profile of forward and backward over the first --samples questions, sorted by cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.profiler import ProfilerActivity, profile

from benchmarks.records import squad_records
from benchmarks.training_ours import Ours


def main() -> None:
    """Print the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the base model as .nemo")
    parser.add_argument("--data", required=True, help="questions in the SQuAD v1.1 format")
    parser.add_argument("--method", choices=("ia3", "adapter"), default="ia3")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--samples", type=int, default=30)
    options = vars(parser.parse_args()) | {"threads": 1, "batch": 8, "global_batch": 64, "family": "gpt"}
    with tempfile.TemporaryDirectory() as folder:
        records = squad_records(options["data"], options["samples"]).save(Path(folder, "records.json"))
        ours = Ours(options | {"records_path": str(records), "samples_path": f"{folder}/samples.json"})
        ours.encode()
    ours.train("ours", None)  # the first step is a warm-up
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        ours.train("ours", None)
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


if __name__ == "__main__":
    main()
