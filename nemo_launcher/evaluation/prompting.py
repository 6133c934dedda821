"""Answers to prompts of one's own and to the records of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.evaluation.session import Session


def answer_prompts(session: Session, prompts: Sequence[str], inference: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `prompt`, `prediction` and `token_ids` of each prompt, in order.

    inference: the keys of the documented section, add_BOS None for as in training; --set goes before them. Raises
    UserError for prompts that are too long and for numbers out of range.
    """
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
    answers = _answers(session, samples, inference)
    return [{"prompt": prompt, **answer} for prompt, answer in zip(prompts, answers, strict=True)]


def answer_records(
    session: Session, path: str | Path, template: str | None, answer_field: str | None, inference: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return each record of a JSON Lines file, in order, with `prediction` and `token_ids`; otherwise as for prompts.

    template, answer_field: as `Session.samples` takes them.
    """
    inference = _counting(session, inference)
    samples = session.samples(path, template, answer_field, session.encoder(inference))
    answers = _answers(session, samples, inference)
    return [{**sample.record, **answer} for sample, answer in zip(samples, answers, strict=True)]


def _counting(session: Session, inference: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the inference section that counts for the family (T5 under nemo_compat decodes a fixed length)."""
    section = {**inference, **(session.config.get("inference") or {})}
    return session.base.family.inference(section, session.config, session.nemo_compat)


def _answers(session: Session, samples: Sequence[Any], inference: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    base = session.base
    sampling = Sampling(**{field.name: inference[field.name] for field in fields(Sampling) if field.name in inference})
    # disable=None: a bar on a terminal, nothing in a log
    with tqdm(total=len(samples), unit="sample", leave=False, disable=None) as bar:
        tokens = generate(base, samples, sampling, batch_size=inference["batch_size"], report=bar.update)
    for ids in tokens:
        yield {"prediction": base.family.text(base.tokenizer, ids).strip(), "token_ids": ids}
