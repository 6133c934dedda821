"""Answers to prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.precision import dtype_of


def answer_prompts(
    base_path: str | Path,
    adapter_path: str | Path | None,
    prompts: Sequence[str],
    *,
    tokens_to_generate: int,
    precision: str = "32",
) -> list[str]:
    """Return what the model says after each prompt (greedy), surrounding blanks removed.

    Raises UserError for unreadable files and for prompts that leave no room.
    """
    base = load_base(base_path, dtype=dtype_of(precision, "--precision"))
    data: dict[str, Any] = {}
    if adapter_path is not None:
        _, config = load_adapter(adapter_path, base)
        data = config.get("data") or {}
    encoder = base.family.prompt_encoder(
        base.tokenizer, base.shape, data, inference={"tokens_to_generate": tokens_to_generate}
    )
    samples = [encoder.encode_text(prompt, f"--prompt {number}") for number, prompt in enumerate(prompts, start=1)]
    problems = list(encoder.problems())
    for sample in samples:
        if not 0 < len(sample.input_ids) <= encoder.max_seq_length:
            what = f"has {len(sample.input_ids)} tokens; 1 to {encoder.max_seq_length} fit"
            problems.append(Problem(sample.source, what))
    if problems:
        raise UserError(problems)
    sampling = Sampling(tokens_to_generate=tokens_to_generate)
    tokens = generate(base, samples, sampling, batch_size=len(samples))
    return [base.family.text(base.tokenizer, ids).strip() for ids in tokens]
