# SPDX-License-Identifier: Apache-2.0
"""Weights in oneDNN's layout: the same products and gradients, one copy per direction, only if memory suffices."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_launcher.families.base import load_base
from nemo_launcher.megatron import frozen_linear, packed_weight
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.frozen_linear import FrozenColumnParallelLinear, FrozenRowParallelLinear
from nemo_launcher.runtime.memory import available_memory
from tests.engine import adapted, frozen_weights, gradients_of, random_tree
from tests.jobs import REPOSITORY

pytestmark = pytest.mark.unit

needs_onednn = pytest.mark.skipif(
    not packed_weight._can_be_packed(torch.zeros(2, 2)), reason="torch was built without oneDNN's packed products"
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_products_are_torchs(rows: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x, grad = (torch.randn(shape, generator=generator) for shape in ((40, 24), (rows, 24), (rows, 40)))
    added = torch.randn(40, generator=generator) if bias else None
    packed = packed_weight.PackedWeight(weight)
    torch.testing.assert_close(packed.forward(x, added), torch.nn.functional.linear(x, weight, added))
    torch.testing.assert_close(packed.backward(grad), grad @ weight)
    assert torch.equal(packed.dense(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_with_weights_as_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in ((40, 24), (9, 24), (9, 40)))
    added = torch.randn(40, generator=generator).to(dtype)
    product = packed_weight.plain_product
    torch.testing.assert_close(product(x, weight, added), torch.nn.functional.linear(x, weight, added))
    torch.testing.assert_close(product(grad, weight.t(), None), grad @ weight)
    apart = weight.repeat(1, 2)[:, :24]  # non-contiguous rows
    torch.testing.assert_close(product(x.t().contiguous().t(), apart, added), product(x, weight, added))


@needs_onednn
def test_a_packed_model_gives_the_same_loss_and_gradients(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_tree(1, 300)
    packed, adapters = adapted(tiny_base, {})
    monkeypatch.setattr(packed_weight, "available_memory", lambda: 0)
    plain, plain_adapters = adapted(tiny_base, {})
    found, wanted = (
        gradients_of(base, adapters, samples, micro_batch_size=4)
        for base, adapters in ((packed, adapters), (plain, plain_adapters))
    )
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
    kinds = (FrozenColumnParallelLinear, FrozenRowParallelLinear)
    layers = [module for module in packed.model.decoder.modules() if isinstance(module, kinds)]
    assert len(layers) == 4 * len(packed.model.decoder.layers)
    assert all(layer.weight.is_meta for layer in layers)
    torch.testing.assert_close(frozen_weights(packed.model), frozen_weights(plain.model), rtol=0, atol=0)
    packed.model.to("cpu")  # as Lightning does
    assert gradients_of(packed, adapters, samples, micro_batch_size=4)[0] == found[0]


@needs_onednn
def test_pages_of_a_mapped_weight_are_released_once_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[tuple[int, int]] = []
    monkeypatch.setattr(frozen_linear, "release_pages", lambda *place: released.append(place))
    layer = FrozenColumnParallelLinear.__new__(FrozenColumnParallelLinear)
    torch.nn.Module.__init__(layer)
    layer.weight, layer.packs_weight = torch.nn.Parameter(torch.randn(6, 4), requires_grad=False), True
    place = layer.weight.data_ptr(), layer.weight.nbytes
    for _ in range(2):
        layer._used_weight(layer.weight)
    assert released == [place]


def test_without_room_weights_stay_where_they_are(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weight, "available_memory", lambda: 1000)
    base = load_base(tiny_base)
    token = torch.zeros(1, 1, dtype=torch.long)
    base.model(token, token, AttentionPlan([Group(0, (1,))]))
    assert not any(parameter.is_meta for parameter in base.model.parameters())


# Prints the bytes on the heap after products with 100 and with 300 different numbers of rows.
HEAP = """
import ctypes
import torch
from nemo_launcher.runtime.memory import limit_allocator_caches
limit_allocator_caches(torch.float32)
from nemo_launcher.megatron.packed_weight import PackedWeight

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s blocks mapped u f used free kept".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap
weight = PackedWeight(torch.randn(512, 256))
for rows in range(1, 301):
    weight.backward(weight.forward(torch.randn(rows, 256), None))
    if rows in (100, 300):
        heap = mallinfo()
        print(heap.used + heap.mapped)
"""


@needs_onednn
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc 2.33 or later for the heap's size")
def test_memory_does_not_grow_with_the_numbers_of_rows_that_occur() -> None:
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HEAP], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    early, late = map(int, done.stdout.split())
    assert late - early < 20 * MIB  # 200 MiB with the default caches of torch and oneDNN


MIB = 2**20
GIB = 2**30


def system(root: Path, cgroup: str, files: dict[str, int | str], available: int = 8 * GIB) -> Path:
    """Write a Linux system's memory files below `root`; return it."""
    entries = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable: {available // 1024} kB\n", "proc/self/cgroup": cgroup}
    for name, content in {**entries, **{f"sys/fs/cgroup/{name}": value for name, value in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n" if not str(content).endswith("\n") else str(content))
    return root


def test_available_memory_is_what_the_narrowest_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    free = system(tmp_path / "free", "0::/\n", {"memory.max": "max"})
    assert available_memory(free) == 8 * GIB
    job = {"job/memory.max": 4 * GIB, "job/memory.current": 3 * GIB, "job/step/memory.max": "max"}
    job["job/memory.stat"] = f"anon 5\ninactive_file {GIB}\n"
    second = system(tmp_path / "slurm", "0::/job/step\n", job)
    assert available_memory(second) == 2 * GIB
    old = {"memory/job/memory.limit_in_bytes": 5 * GIB, "memory/job/memory.usage_in_bytes": 4 * GIB}
    first = system(tmp_path / "old", "9:cpuset:/\n4:memory:/job\n0::/\n", old)
    assert available_memory(first) == GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(first) == GIB // 4
    assert available_memory(tmp_path / "no such system") is None
