# SPDX-License-Identifier: Apache-2.0
"""Our rate and PEFT's on the same samples; a section of benchmarks/gpu.py."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu_models import Bench, Row, Trained, attempt, batch_of, large_shapes, questions, smollm
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.fused_check import can_fuse


def peers(bench: Bench) -> Iterator[Row]:
    """Yield the rates of IA3 on the samples of `training`: ours, and PEFT's with transformers.

    PEFT's batches are random, of 8 and 64, with Liger where it imports. The epoch includes the optimizer.
    """
    samples = questions(2 if bench.small else 28)
    large, shape = next(iter(large_shapes(bench).items()))
    shapes = {"SmolLM2-135M": smollm(bench), large: shape}
    for name, shape in shapes.items():
        yield from attempt(lambda shape=shape: _ours(bench, shape, samples), model=name, of="ours")
    for fused in (False, True):  # without Liger first: it patches transformers' classes for the rest of the process
        for name, shape in shapes.items():
            for size in (8, 64):
                yield from attempt(
                    lambda fused=fused, size=size, shape=shape: _peer(bench, shape, samples, size, fused=fused),
                    model=name,
                    of="PEFT, Liger" if fused else "PEFT",
                    batch=size,
                )


def _ours(bench: Bench, shape: GPTShape, samples: Sequence[Any]) -> Row:
    trained = Trained(shape, "ia3", bench.dtype, bench.device)
    set_attention_backend(trained.model, "auto")
    set_fused(trained.model, can_fuse(bench.device, bench.dtype))
    batch = batch_of(list(samples), bench.device)
    return {"sample_tokens_per_second": batch.sample_tokens / bench.seconds(trained.step(batch), warm=1, rounds=3)}


def _peer(bench: Bench, shape: GPTShape, samples: Sequence[Any], size: int, *, fused: bool) -> Row:
    from peft import IA3Config, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if fused:
        from liger_kernel.transformers import apply_liger_kernel_to_llama  # type: ignore[import-not-found]

        apply_liger_kernel_to_llama()
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    modules = ["k_proj", "v_proj", "down_proj"]
    ia3 = IA3Config(target_modules=modules, feedforward_modules=modules[2:], task_type="CAUSAL_LM")
    with bench.device:
        base = LlamaForCausalLM(config).to(bench.dtype)
    model = get_peft_model(base, ia3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    order = random.Random(1).sample(samples, len(samples))

    def epoch() -> None:
        for start in range(0, len(order), size):
            optimizer.zero_grad()
            model(**_padded(order[start : start + size], bench.device)).loss.backward()
            optimizer.step()

    seconds = bench.seconds(epoch, warm=1, rounds=3)
    return {"sample_tokens_per_second": sum(len(sample.input_ids) - 1 for sample in order) / seconds}


def _padded(samples: Sequence[Any], device: torch.device) -> dict[str, torch.Tensor]:
    """Return transformers' arguments for a batch that is padded to its longest sample."""
    width = max(len(sample.input_ids) for sample in samples)

    def tensor(rows: Iterator[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

    answers = ([-100] * s.answer_start + s.input_ids[s.answer_start :] for s in samples)
    return {
        "input_ids": tensor((s.input_ids for s in samples), 0),
        "attention_mask": tensor(([1] * len(s.input_ids) for s in samples), 0),
        "labels": tensor(answers, -100),
    }
