# SPDX-License-Identifier: Apache-2.0
"""Fused operators: the kernels that they launch, and their time; a section of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_models import Bench, Row, attempt
from nemo_launcher.megatron import fused
from nemo_launcher.megatron.fused_check import fused_error
from nemo_launcher.megatron.rotary import Rotation

Call = Callable[[], object]


def operators(bench: Bench) -> Iterator[Row]:
    """Yield whether the operators work, and each one's kernels, time, and the time of torch's operations.

    `as_counted` says whether the tests on the meta device count the same number of kernels (fused.KERNELS).
    """
    reason = fused_error(bench.device, bench.dtype) if bench.is_gpu else "they need a GPU"
    yield {"fused_operators": "work" if reason is None else reason}
    if reason is not None and bench.is_gpu:
        return
    for name, (mine, theirs) in _calls(bench).items():
        yield from attempt(lambda name=name, mine=mine, theirs=theirs: _measured(bench, name, mine, theirs), of=name)


def _measured(bench: Bench, name: str, mine: Call, theirs: Call) -> Row:
    row = {"torch_ms": 1e3 * bench.seconds(theirs)}
    if not bench.is_gpu:
        return row
    row["ms"] = 1e3 * bench.seconds(mine)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        mine()
        torch.cuda.synchronize()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in found.events())
    return row | {"kernels": kernels, "as_counted": kernels == fused.KERNELS[name]}


def _calls(bench: Bench) -> dict[str, tuple[Call, Call]]:
    """Return a call of each operator, and of what torch computes instead, at the sizes of a 1.7B Llama."""
    tokens, hidden, ffn, heads = (64, 32, 64, 4) if bench.small else (8192, 2048, 8192, 32)
    operator = torch.ops.nemo_launcher

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=bench.device, dtype=bench.dtype)

    x, residual, grad, weight = (
        drawn(tokens, 1, hidden),
        drawn(tokens, 1, hidden),
        drawn(tokens, 1, hidden),
        drawn(hidden),
    )
    scale = torch.rand(tokens, device=bench.device)
    query, key = drawn(tokens, 1, heads, hidden // heads), drawn(tokens, 1, heads, hidden // heads)
    angles = torch.rand(tokens, 1, 1, hidden // heads // 2, device=bench.device).repeat(1, 1, 1, 2)
    rotation = Rotation.from_angles(angles, bench.dtype)
    projected, wide = drawn(tokens, 1, 2 * ffn), drawn(tokens, 1, ffn)
    turned = query, key, rotation.cos, rotation.sin

    def norm(of: Tensor) -> Tensor:
        return F.rms_norm(of, (hidden,), weight, 1e-5)

    def turn() -> list[Tensor]:
        return [rotation.apply_rotary(query), rotation.apply_rotary(key)]

    def gate() -> Tensor:
        first, second = projected.chunk(2, -1)
        return F.silu(first) * second

    return {
        "rms_norm": (lambda: operator.rms_norm(x, weight, 1e-5), lambda: norm(x)),
        "rms_norm_backward": (lambda: operator.rms_norm_backward(grad, x, weight, scale), lambda: norm(x)),
        "add_rms_norm": (lambda: operator.add_rms_norm(x, residual, weight, 1e-5), lambda: norm(x + residual)),
        "add_rms_norm_backward": (
            lambda: operator.add_rms_norm_backward(grad, grad, x, weight, scale),
            lambda: norm(x + residual),
        ),
        "rotate": (
            lambda: operator.rotate(*turned, False),
            turn,
        ),
        "swiglu": (lambda: operator.swiglu(projected), gate),
        "swiglu_backward": (lambda: operator.swiglu_backward(wide, projected), gate),
    }
