# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients on a device against fp32 on the CPU; a section of benchmarks/gpu.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_models import (
    METHODS,
    Bench,
    Row,
    Trained,
    attempt,
    batch_of,
    gpt_shape,
    questions,
    t5_samples,
    t5_shape,
    unrelated,
)
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.t5.shape import T5Shape
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.fused_check import fused_error

_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def _shapes(bench: Bench) -> dict[str, GPTShape | T5Shape]:
    if bench.small:
        return {"Llama, grouped queries": gpt_shape(2, 64, 128, 8, 2)}
    return {
        "Llama, grouped queries": gpt_shape(3, 256, 512, 8, 2),
        "Llama": gpt_shape(3, 256, 512, 4, 4),
        "GPT-3": gpt_shape(3, 256, 512, 4, 4, gpt3=True),
        "T5": t5_shape(2),
    }


def parity(bench: Bench) -> Iterator[Row]:
    """Yield the difference of gradients, relative to their norm, for models, methods, rows, dtypes and backends.

    `agrees` says whether it is at most 1e-4 in fp32 and 5e-2 in bf16, or twice that of bf16 on the CPU. FlexAttention
    is compared in bf16, for which jobs use it; it compiles for each shape.
    """
    for name, shape in _shapes(bench).items():
        is_t5 = isinstance(shape, T5Shape)
        rows: dict[str, list[Any]] = {"short": unrelated(3, 20, 1)}
        if not bench.small:
            rows |= {"shared prefixes": questions(4), "unrelated": unrelated(4, 150, 20)}
        for method in METHODS:
            reference = Trained(shape, method, torch.float32, torch.device("cpu"))
            for kind, samples in ({"prompts": t5_samples(8)} if is_t5 else rows).items():
                wanted = reference.gradients(batch_of(samples, torch.device("cpu")))
                for dtype in _ALLOWED:
                    case = {"model": name, "method": method, "row": kind, "dtype": str(dtype).removeprefix("torch.")}
                    yield from _backends(bench, shape, method, dtype, samples, wanted, case)


def _backends(
    bench: Bench,
    shape: GPTShape | T5Shape,
    method: str,
    dtype: torch.dtype,
    samples: list[Any],
    wanted: tuple[float, Tensor],
    case: Row,
) -> Iterator[Row]:
    has_flex = bench.is_gpu and dtype == torch.bfloat16
    fuses = bench.is_gpu and fused_error(bench.device, dtype) is None
    ways = [("sdpa", False)] + [("flex", False)] * has_flex + [("flex" if has_flex else "sdpa", True)] * fuses
    for backend, fused in ways:

        def compared(backend: str = backend, fused: bool = fused) -> Row:
            trained = Trained(shape, method, dtype, bench.device)
            set_attention_backend(trained.model, backend)
            set_fused(trained.model, fused)
            loss, gradients = trained.gradients(batch_of(samples, bench.device))
            error = _distance(gradients, wanted[1])
            allowed = _ALLOWED[dtype]
            if error > allowed and dtype != torch.float32:
                on_cpu = Trained(shape, method, dtype, torch.device("cpu"))
                _, same_dtype = on_cpu.gradients(batch_of(samples, torch.device("cpu")))
                allowed = max(allowed, 2 * _distance(same_dtype, wanted[1]))
            return {"loss": abs(loss - wanted[0]), "gradients": error, "agrees": error <= allowed}

        yield from attempt(compared, **case, backend=backend, fused=fused)


def _distance(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm())
