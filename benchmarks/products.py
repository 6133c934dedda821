# SPDX-License-Identifier: Apache-2.0
"""Rates of products with a base's frozen weights, for rows of several lengths; a worker of benchmarks/workloads.py.

Each thread computes its own products, as the micro-batches that run side by side do (training.workers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from benchmarks.side import serve
from nemo_launcher.families.base import load_base
from nemo_launcher.megatron.packed_weight import PackedWeight, PacksWeight, plain_product
from nemo_launcher.runtime.precision import dtype_of

ROWS = (64, 128, 256, 512, 1024)
SECONDS = 0.05  # of each measurement, at least


class Products:
    """The weights of one layer and of the head."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.threads = options["threads"]
        self.dtype = dtype_of({"fp32": "32", "bf16": "bf16"}[options["dtype"]], "")
        self.base = load_base(options["base"], dtype=self.dtype)

    def rates(self) -> dict[str, Any]:
        """Return GFLOP/s by product, direction and number of rows."""
        with ThreadPoolExecutor(self.threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            found = [
                {"product": name, "direction": direction, "rows": rows, "gflops": self._rate(pool, product, rows, size)}
                for name, direction, product, size in self._products()
                for rows in ROWS
            ]
        return {"products": found}

    def _products(self) -> Iterator[tuple[str, str, Callable[[Tensor], Tensor], tuple[int, int]]]:
        """Yield name, direction, function of the rows, and sizes of input and output."""
        weights = {}
        for path, module in self.base.model.named_modules():
            if isinstance(module, PacksWeight) and ("layers.0." in path or module.packs_weight is None):
                weight = module.weight
                if weight is None:  # a tied head
                    weight = next(one for name, one in self.base.model.named_parameters() if "word_embed" in name)
                weights[path.rpartition(".")[2]] = (weight, bool(module.packs_weight))
        for name, (weight, packs) in weights.items():
            outputs, inputs = weight.shape
            if packs:
                packed = PackedWeight(weight)
                yield name, "forward", lambda x, packed=packed: packed.forward(x, None), (inputs, outputs)
                yield name, "backward", packed.backward, (outputs, inputs)
            else:
                yield name, "forward", lambda x, w=weight: plain_product(x, w, None), (inputs, outputs)
                yield name, "backward", lambda x, w=weight: plain_product(x, w.t(), None), (outputs, inputs)

    def _rate(
        self, pool: ThreadPoolExecutor, product: Callable[[Tensor], Tensor], rows: int, size: tuple[int, int]
    ) -> float:
        """Return the GFLOP/s of all threads together."""
        inputs = [torch.randn(rows, size[0]).to(self.dtype) for _ in range(self.threads)]
        barrier = Barrier(self.threads)

        def work(x: Tensor) -> float:
            with torch.no_grad():
                product(x)
                barrier.wait()
                start, count = time.perf_counter(), 0
                while time.perf_counter() - start < SECONDS:
                    product(x)
                    count += 1
                return count * 2e-9 * rows * size[0] * size[1] / (time.perf_counter() - start)

        return sum(pool.map(work, inputs))


def commands_of(options: dict[str, Any]) -> dict[str, Callable[..., dict[str, Any]]]:
    """Load the model; return the commands."""
    return {"rates": Products(options).rates}


if __name__ == "__main__":
    serve(commands_of)
