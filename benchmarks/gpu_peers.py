# SPDX-License-Identifier: Apache-2.0
"""PEFT's rate on the same samples; a section of benchmarks/gpu.py."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu_models import Bench, Row, attempt, questions, smollm


def peers(bench: Bench) -> Iterator[Row]:
    """Yield the rates of PEFT's IA3 with transformers, in random batches of 8 and 64, and with Liger where it imports.

    The samples are those of `training`.
    """
    samples = questions(2 if bench.small else 28)
    for fused in (False, True):
        for size in (8, 64):
            yield from attempt(
                lambda fused=fused, size=size: _peer(bench, samples, size, fused=fused), liger=fused, batch=size
            )


def _peer(bench: Bench, samples: Sequence[Any], size: int, *, fused: bool) -> Row:
    from peft import IA3Config, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if fused:
        from liger_kernel.transformers import apply_liger_kernel_to_llama  # type: ignore[import-not-found]

        apply_liger_kernel_to_llama()
    shape = smollm(bench)
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
    model = get_peft_model(LlamaForCausalLM(config).to(bench.device, bench.dtype), ia3)
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
