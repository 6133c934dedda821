# SPDX-License-Identifier: Apache-2.0
"""Rates of the machine, and speed and memory of attention, training and generation; sections of benchmarks/gpu.py."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_models import (
    Bench,
    Row,
    Trained,
    attempt,
    batch_of,
    large_shapes,
    questions,
    random_model,
    smollm,
    t5_samples,
    t5_shape,
    unrelated,
)
from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.families.gpt.family import GPT
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.t5.family import T5
from nemo_launcher.megatron.attention import PackedAttention, set_attention_backend
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.compilation import set_torch_compile
from nemo_launcher.megatron.fused import set_fused


def matrix_rate(bench: Bench, rows: int, inner: int, columns: int) -> float:
    """Return the TFLOP/s of a product in bf16."""
    a = torch.randn(rows, inner, device=bench.device, dtype=bench.dtype)
    b = torch.randn(inner, columns, device=bench.device, dtype=bench.dtype)
    return 2e-12 * rows * inner * columns / bench.seconds(lambda: a @ b)


def machine(bench: Bench) -> Iterator[Row]:
    """Yield versions and the machine's own rates."""
    name = torch.cuda.get_device_name() if bench.is_gpu else "CPU"
    yield {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
    n = 256 if bench.small else 8192
    for sizes in ((n, n, n), (n, n // 4, n), (n, 576, 1536)):
        yield {"product": "x".join(map(str, sizes)), "tflops": matrix_rate(bench, *sizes)}
    source = torch.randn(1 << (20 if bench.small else 29), device=bench.device)
    target = torch.empty_like(source)
    yield {"copy_tb_per_second": 8e-12 * source.numel() / bench.seconds(lambda: target.copy_(source))}
    one = torch.zeros(8, device=bench.device)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1.0)

    yield {"microseconds_a_launch": 1e3 * bench.seconds(launches, rounds=3)}


def attention(bench: Bench) -> Iterator[Row]:
    """Yield the time of one layer's attention over a row, forward and backward, and that of its first call."""
    total = 512 if bench.small else 8192
    for heads, groups in ((9, 3), (32, 32), (32, 8)):
        for kind in ("one sample", "unrelated samples", "shared prefixes"):
            for backend in ("sdpa", "flex") if bench.is_gpu else ("sdpa",):
                yield from attempt(
                    lambda heads=heads, groups=groups, kind=kind, backend=backend: _attention(
                        bench, (heads, groups), _groups(kind, total), backend
                    ),
                    heads=f"{heads}/{groups}",
                    row=kind,
                    tokens=total,
                    backend=backend,
                )


def _groups(kind: str, total: int) -> list[Group]:
    generator, groups, start = random.Random(5), [], 0
    while start < total:
        lengths: tuple[int, ...] = (total,) if kind == "one sample" else (generator.randint(120, 240),)
        if kind == "shared prefixes":
            lengths = (generator.randint(100, 200), *(generator.randint(20, 40) for _ in range(5)))
        lengths = lengths if sum(lengths) <= total - start else (total - start,)
        groups.append(Group(start, lengths, (-1, *[0] * (len(lengths) - 1))))
        start = groups[-1].stop
    return groups


def _attention(bench: Bench, heads: tuple[int, int], groups: Sequence[Group], backend: str) -> Row:
    core = PackedAttention(SimpleNamespace(kv_channels=64), 1)
    core.uses_flex = backend == "flex"
    plan, tokens = AttentionPlan(groups), groups[-1].stop
    query, key, value = (
        torch.randn(tokens, 1, count, 64, device=bench.device, dtype=bench.dtype, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    )

    def step() -> None:
        output = core(query, key, value, plan)
        torch.autograd.grad(output, (query, key, value), output.detach())

    bench.forget_peak()
    return {"first_seconds": bench.first_seconds(step), "ms": 1e3 * bench.seconds(step)} | bench.peak()


def _measured(
    bench: Bench, trained: Trained, batch: GlobalBatch, backend: str, *, kernels: str, profiled: bool = True
) -> Row:
    """Return the figures of training steps on one batch; kernels: torch, compile or liger."""
    set_attention_backend(trained.model, backend)
    set_torch_compile(trained.model, kernels == "compile")
    set_fused(trained.model, kernels == "liger")
    step = trained.step(batch)
    bench.forget_peak()
    first, seconds = bench.first_seconds(step), bench.seconds(step)
    row = {"first_seconds": first, "step_ms": 1e3 * seconds, "computed_tokens": batch.computed_tokens}
    row |= {"sample_tokens_per_second": batch.sample_tokens / seconds} | bench.peak()
    return row | (_kernels(step) if bench.is_gpu and profiled else {})


def _kernels(step: Any) -> Row:
    """Return the number of kernels of a step, their time, and that of the copies and waits of the host."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    calls = [event.name for event in found.events() if event.device_type != torch.autograd.DeviceType.CUDA]
    waits = sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize") for name in calls)
    return {
        "kernels": len(kernels),
        "busy_ms": sum(event.device_time for event in kernels) / 1e3,
        "waits": waits - 1,
        "copies": sum(name == "cudaMemcpyAsync" for name in calls),
    }


def training(bench: Bench) -> Iterator[Row]:
    """Yield the steps of SmolLM2-135M's shape on questions that share contexts, by method and backend."""
    shape, contexts = smollm(bench), 2 if bench.small else 28
    for method, backend, kernels in (
        ("ia3", "sdpa", "torch"),
        ("ia3", "flex", "torch"),
        ("ia3", "flex", "compile"),
        ("ia3", "flex", "liger"),
        ("adapter", "flex", "torch"),
        ("adapter", "flex", "liger"),
        ("lora", "flex", "liger"),
    ):
        case = {"method": method, "backend": backend, "kernels": kernels}

        def measured(method: str = method, backend: str = backend, kernels: str = kernels) -> Row:
            trained = Trained(shape, method, bench.dtype, bench.device)
            return _measured(bench, trained, batch_of(questions(contexts), bench.device), backend, kernels=kernels)

        yield from attempt(measured, **case)
    for backend in ("sdpa", "flex"):
        yield from attempt(lambda backend=backend: _new_lengths(bench, shape, contexts, backend), backend=backend)


def _new_lengths(bench: Bench, shape: GPTShape, contexts: int, backend: str) -> Row:
    """Return the time of steps whose batches all have other lengths."""
    trained = Trained(shape, "ia3", bench.dtype, bench.device)
    set_attention_backend(trained.model, backend)
    batches = [batch_of(questions(contexts, seed=seed), bench.device) for seed in range(6)]
    seconds = sorted(bench.first_seconds(trained.step(batch)) for batch in batches)
    return {"batches": "other lengths each", "step_ms": 1e3 * seconds[2]}


def utilization(bench: Bench) -> Iterator[Row]:
    """Yield the share of the matrix rate that a training reaches, without shared prefixes."""
    n = 256 if bench.small else 8192
    peak = matrix_rate(bench, n, n, n)
    length, count = (64, 2) if bench.small else (4096, 2)
    for name, shape in large_shapes(bench).items():
        batch = batch_of(unrelated(count, length, length // 32), bench.device)
        for method, kernels in (("ia3", "torch"), ("ia3", "liger"), ("adapter", "liger"), ("lora", "liger")):

            def measured(
                shape: GPTShape = shape, batch: GlobalBatch = batch, method: str = method, kernels: str = kernels
            ) -> Row:
                trained = Trained(shape, method, bench.dtype, bench.device)
                row = _measured(bench, trained, batch, "flex", kernels=kernels)
                seconds = row["step_ms"] / 1e3
                rate = _flops(shape, batch, length) / seconds / 1e12
                return row | {
                    "tokens_per_second": batch.computed_tokens / seconds,
                    "share": rate / peak,
                    "matrix_tflops": peak,
                }

            yield from attempt(measured, model=name, method=method, kernels=kernels)


def _flops(shape: GPTShape, batch: GlobalBatch, length: int) -> float:
    """Return the FLOPs of a step on samples of `length` tokens, without what is computed twice.

    Of a frozen weight these are 4 a token: forward, and the gradient of the input. Causal attention has half of 2
    products forward and 4 backward. The head runs for tokens with labels alone.
    """
    heads, keys = (count * shape.kv_channels for count in (shape.num_attention_heads, shape.num_query_groups))
    weights = shape.hidden_size * (2 * heads + 2 * keys + 3 * shape.ffn_hidden_size)
    layers = shape.num_layers * (4.0 * weights + 6.0 * length * heads)
    return batch.computed_tokens * layers + 4.0 * batch.answer_tokens * shape.hidden_size * shape.vocab_size


def generation(bench: Bench) -> Iterator[Row]:
    """Yield the rates of greedy generation, and for a T5 whether the tokens are those of the CPU in fp32."""
    prompts = [
        dataclasses.replace(s, input_ids=s.input_ids[: s.answer_start]) for s in questions(2 if bench.small else 12)
    ]
    yield from attempt(lambda: _generated(bench, smollm(bench), prompts, bench.dtype)[0], model="SmolLM2-135M's shape")
    starts = [dataclasses.replace(sample, decoder_ids=sample.decoder_ids[:1]) for sample in t5_samples(8)]

    def compared() -> Row:
        row, tokens = _generated(bench, t5_shape(2), starts, torch.float32)
        on_cpu = dataclasses.replace(bench, device=torch.device("cpu"))
        return row | {"same_as_cpu": tokens == _generated(on_cpu, t5_shape(2), starts, torch.float32)[1]}

    yield from attempt(compared, model="T5")


def _generated(bench: Bench, shape: Any, samples: Sequence[Any], dtype: torch.dtype) -> tuple[Row, str]:
    base: Any = SimpleNamespace(
        model=random_model(shape, dtype, bench.device),
        device=bench.device,
        family=GPT if isinstance(shape, GPTShape) else T5,
        shape=shape,
        tokenizer=SimpleNamespace(vocab_size=4000, eos_id=None),
    )
    count = 8 if bench.small else 32
    generate(base, samples[:2], Sampling(tokens_to_generate=2), batch_size=2)
    answers: list[list[int]] = []

    def run() -> None:
        answers.extend(generate(base, samples, Sampling(tokens_to_generate=count), batch_size=len(samples)))

    seconds = bench.first_seconds(run)
    rate = sum(map(len, answers)) / seconds
    return {"prompts": len(samples), "tokens_per_second": rate, "step_ms": 1e3 * seconds / count}, json.dumps(answers)
