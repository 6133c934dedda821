"""Answers to prompts of one's own and to the records of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.evaluation.session import Session


def answer_prompts(session: Session, prompts: Sequence[str], inference: Mapping[str, Any]) -> list[str]:
    """Return what the model says after each prompt, surrounding blanks removed. Raises UserError for one too long."""
    inference = _counting(session, inference)
    encoder = session.encoder(inference)
    samples = [encoder.encode_text(prompt, f"--prompt {number}") for number, prompt in enumerate(prompts, start=1)]
    problems = list(encoder.problems())
    for sample in samples:
        if not 0 < len(sample.input_ids) <= encoder.max_seq_length:
            what = f"has {len(sample.input_ids)} tokens; 1 to {encoder.max_seq_length} fit"
            problems.append(Problem(sample.source, what))
    if problems:
        raise UserError(problems)
    return [text.strip() for text, _ in _answers(session, samples, inference)]


def answer_records(
    session: Session, path: str | Path, template: str | None, answer_field: str | None, inference: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield each record of a JSON Lines file, in order, with `prediction` and `token_ids`."""
    inference = _counting(session, inference)
    samples = session.samples(path, template, answer_field, session.encoder(inference))
    for sample, (text, ids) in zip(samples, _answers(session, samples, inference), strict=True):
        yield {**sample.record, "prediction": text.strip(), "token_ids": ids}


def _counting(session: Session, inference: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inference section that counts for the family (T5 under nemo_compat decodes a fixed length)."""
    return session.base.family.inference(inference, session.config, session.nemo_compat)


def _answers(session: Session, samples: Sequence[Any], inference: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    names = [field.name for field in fields(Sampling) if field.name in inference]
    sampling = Sampling(**{name: inference[name] for name in names})
    tokens = generate(session.base, samples, sampling, batch_size=inference["batch_size"])
    return [(session.base.family.text(session.base.tokenizer, ids), ids) for ids in tokens]
