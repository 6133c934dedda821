# SPDX-License-Identifier: Apache-2.0
"""Answer prompts from the command line and the records of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nemo_launcher.data.given_records import source_of
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.answer_keys import answers_key
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.prompt_settings import templates_of
from nemo_launcher.evaluation.results import Answer, Results
from nemo_launcher.evaluation.sampling import Request
from nemo_launcher.evaluation.session import Session
from nemo_launcher.runtime.bars import new_bar


def answer_prompts(
    session: Session, prompts: Sequence[str], request: Request, results: Results | None = None
) -> list[Answer]:
    """Return `prompt`, `prediction` and `token_ids` of each prompt, in order.

    request: the settings, which --set overrides. results: receives each answer as soon as it is ready. Raises
    UserError for prompts that are too long, for values out of range, and when the model's output is not finite.
    """
    request = session.effective(request)
    encoder = session.encoder(request)
    samples = [encoder.encode_text(prompt, f"--prompt {number}") for number, prompt in enumerate(prompts, start=1)]
    problems = list(encoder.problems())
    for sample in samples if not problems else []:
        if not 0 < len(sample.input_ids) <= encoder.max_seq_length:
            what = f"has {len(sample.input_ids)} tokens; 1 to {encoder.max_seq_length} fit"
            fix = "shorten it, or lower --tokens-to-generate" if sample.input_ids else "write a text to continue"
            problems.append(Problem(sample.source, what, fix))
    if problems:
        raise UserError(problems)
    return _answers(session, samples, [{"prompt": prompt} for prompt in prompts], request, results)


def answer_records(
    session: Session,
    source: str | Path | Sequence[Mapping[str, object]],
    template: str | None,
    answer_field: str | None,
    request: Request,
    results: Results | None = None,
) -> list[Answer]:
    """Return each record of a file or in memory, in order, with `prediction` and `token_ids`; see `answer_prompts`.

    template, answer_field: as in `Session.samples`.
    """
    request = session.effective(request)
    samples = session.samples(source, template, answer_field, session.encoder(request))
    records = [sample.record for sample in samples]
    if session.prompts.nemo_compat:  # NeMo's prompts end with the closing text of the template
        return _answers(session, samples, records, request, results)
    templates = templates_of(session.prompts, template, answer_field, [source_of(source)])
    tasks = Tasks.of(templates, any_name=len(templates) == 1)
    found = [tasks.find(sample.record, sample.source) for sample in samples]
    answers_in = [task.answer_in if isinstance(task, TaskTemplate) else str for task in found]
    return _answers(session, samples, records, request, results, answers_in)


def _answers(
    session: Session,
    samples: Sequence[Sample],
    records: Sequence[Mapping[str, object]],
    request: Request,
    results: Results | None,
    answers_in: Sequence[Callable[[str], str]] = (),
) -> list[Answer]:
    """Return the records, one per sample, with their answers.

    answers_in: return the answer in each sample's generated text; empty for the whole text.
    """
    base = session.base
    sampling = request.sampling

    def answer(place: int, ids: list[int]) -> Answer:
        text = base.family.text(base.tokenizer, ids)
        prediction = answers_in[place](text) if answers_in else text
        return {**records[place], "prediction": prediction.strip(), "token_ids": ids}

    def keep(place: int, ids: list[int]) -> None:
        if results is not None:
            results.take(place, answer(place, ids))

    adapter = session.adapters.state_dict() if session.adapters is not None else {}
    known = results.begin(answers_key(base, adapter, samples, sampling)) if results is not None else {}
    known = {place: ids for place, ids in known.items() if place < len(samples)}
    with new_bar(len(samples), "sample", done=len(known)) as bar:
        batch_size = min(request.batch_size, len(samples))
        tokens = generate(base, samples, sampling, batch_size=batch_size, report=bar.update, known=known, keep=keep)
    answers = [answer(place, ids) for place, ids in enumerate(tokens)]
    if results is not None:
        results.end(answers)
    return answers
