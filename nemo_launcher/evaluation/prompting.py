"""Answers to prompts of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.adapters.archive import load_adapter
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.data.prompts import Sample
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
    add_bos = False
    if adapter_path is not None:
        _, config = load_adapter(adapter_path, base)
        add_bos = bool((config.get("data") or {}).get("add_bos", False))
    bos = [base.tokenizer.bos_id] if add_bos and base.tokenizer.bos_id is not None else []
    samples = []
    for number, prompt in enumerate(prompts, start=1):
        ids = [*bos, *base.tokenizer.text_to_ids(prompt.strip(" "))]
        room = base.shape.encoder_seq_length - tokens_to_generate
        if not 0 < len(ids) <= room:
            raise UserError(Problem(f"--prompt {number}", f"has {len(ids)} tokens; 1 to {room} fit"))
        samples.append(Sample(ids, 0, {}, f"--prompt {number}"))
    sampling = Sampling(tokens_to_generate=tokens_to_generate)
    tokens = generate(base, samples, sampling, batch_size=len(samples))
    return [base.tokenizer.ids_to_text(ids).strip() for ids in tokens]
