# SPDX-License-Identifier: Apache-2.0
"""How much memory a rank takes to read its share of many files."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.sizes import ParallelSizes
from tests import gpt
from tests.checkpoint.sharding import gpt_config, sharded_gpt, stored_gpt
from tests.world import run_world

pytestmark = pytest.mark.unit


# --- memory -----------------------------------------------------------------------------------------------------


BIG = {"hidden_size": 256, "ffn_hidden_size": 1024, "num_layers": 8, "num_attention_heads": 4}

MIB = 2**20


def anonymous_bytes() -> int:
    """Return this process's memory that is not backed by files."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@contextmanager
def peak_of_anonymous_memory():
    """Yield a list that holds the peak usage afterwards."""
    peaks, stop = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.0005):
            peaks[0] = max(peaks[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()
        peaks[0] = max(peaks[0], anonymous_bytes())


def measure(tiny: str, big: str, results: str) -> None:
    """Load this rank's half of a model; write its peak and final memory increase."""
    sizes = ParallelSizes(tensor=2)
    load_base(tiny, sizes=sizes)  # warm-up of libraries, process groups, threads
    before = anonymous_bytes()
    with peak_of_anonymous_memory() as peaks:
        base = load_base(big, sizes=sizes)
    kept = anonymous_bytes() - before
    share = sum(parameter.numel() * 4 for parameter in base.model.parameters())
    figures = {"peak": peaks[0] - before, "kept": kept, "share": share}
    torch.save(figures, f"{results}/{torch.distributed.get_rank()}.pt")


@pytest.mark.integration
@pytest.mark.parametrize("ranks", [1, 2, 4], ids=lambda ranks: f"{ranks}_files")
@pytest.mark.parametrize("name", ["legacy_gated", "mcore_gated"])
def test_a_rank_takes_its_share_and_no_more_than_a_file_beside_it(name: str, ranks: int, tmp_path: Path) -> None:
    config = gpt_config(name) | BIG
    stored = stored_gpt(config)
    big = sharded_gpt(tmp_path / "big.nemo", config, stored, ranks, 1)
    tiny = gpt.write_gpt(tmp_path / "tiny.nemo", gpt_config(name), {WEIGHTS_NAME: stored_gpt(gpt_config(name))})
    jobs = run_world(2, measure, (str(tiny), str(big), str(tmp_path)), tmp_path / "logs")
    assert [job.status for job in jobs] == [0, 0], jobs[0].output
    whole = sum(4 * weight.numel() for weight in stored.values())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["share"] == pytest.approx(whole / 2, rel=0.05)
        assert found["kept"] < found["share"] + 4 * MIB
        assert found["peak"] < found["share"] + whole / ranks + 4 * MIB
