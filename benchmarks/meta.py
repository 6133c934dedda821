# SPDX-License-Identifier: Apache-2.0
"""What a training step asks of a GPU, counted without one on torch's meta device:

    python benchmarks/meta.py

Kernels of one more layer (for a T5, of one more in each stack) and copies, for forward, backward and clipping of 46
samples of 180 tokens in bf16. Three ways: attention by group or sample, attention by row (FlexAttention), and with
liger-kernel's fused operators besides. The second table is a roofline: the time of matrix products and of the other
operations' traffic at the rates of an H100, without attention, and the host's time to launch the kernels.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nemo_launcher.runtime.startup import quick_imports

with quick_imports():
    from tests.meta import Recorder
    from tests.meta_models import ROWS, MetaModel, batch_of, samples
    from tests.methods import METHODS, at_other_sites

WAYS = {"by group": (False, False), "by row": (True, False), "fused": (True, True)}
LAYERS = {"llama": 30, "llama-1.7b": 24}
PRODUCTS, TRAFFIC, LAUNCH = 776e12, 2.99e12, 16e-6
"""An H100's FLOP/s in bf16 and bytes/s (benchmarks/README.md), and the host's seconds for each kernel."""


def counted(kind: str, method: str, rows: str, way: str) -> tuple[Recorder, Recorder]:
    """Return the records of a step with two and with four layers."""
    batch, (flex, fused) = batch_of(samples(kind, rows)), WAYS[way]
    few, many = (MetaModel(kind, method, layers, flex=flex, fused=fused).train(batch) for layers in (2, 4))
    return few, many


def whole(kind: str, few: float, many: float) -> float:
    """Return a figure of the whole model, from those of two and of four layers."""
    return few + (many - few) / 2 * (LAYERS[kind] - 2)


def kernel_table() -> Iterator[str]:
    """Yield a line for each kind of model, method and row."""
    yield f"| model | method | row | {' | '.join(WAYS)} | copies | blocking |"
    yield f"| --- | --- | --- | {'--- | ' * len(WAYS)}--- | --- |"
    for kind in ("llama", "gpt3", "t5"):
        for method in METHODS:
            for rows in ROWS:
                found = [counted(kind, method, rows, way) for way in WAYS]
                each = [f"{(many.total() - few.total()) / 2:g}" for few, many in found]
                last = found[-1][1]
                yield f"| {kind} | {method} | {rows} | {' | '.join(each)} | {last.copies} | {last.blocking} |"


def roofline_table() -> Iterator[str]:
    """Yield a line for each method and way, of two sizes of Llama."""
    yield "| model | method | way | kernels | products, ms | traffic, GB | traffic, ms | host, ms |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for kind in ("llama", "llama-1.7b"):
        for method in at_other_sites():
            for way in WAYS:
                few, many = counted(kind, method, "unrelated", way)
                kernels, flops = whole(kind, few.total(), many.total()), whole(kind, few.flops, many.flops)
                traffic = whole(kind, few.traffic, many.traffic)
                times = f"{1e3 * flops / PRODUCTS:.1f} | {traffic / 1e9:.1f} | {1e3 * traffic / TRAFFIC:.1f}"
                yield f"| {kind} | {method} | {way} | {kernels:,.0f} | {times} | {1e3 * kernels * LAUNCH:.0f} |"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for table in (kernel_table(), [""], roofline_table()):
        for line in table:
            print(line, flush=True)
