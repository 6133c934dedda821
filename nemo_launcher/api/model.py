# SPDX-License-Identifier: Apache-2.0
"""A base model in this process, with or without an adapter: generate, score, change the adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_launcher.api.arguments import (
    Records,
    are_texts,
    checked_batch_size,
    checked_file,
    checked_records,
    precision_of,
    settings_of,
)
from nemo_launcher.api.words import in_python
from nemo_launcher.errors import Problem, UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from nemo_launcher.evaluation.results import Results
    from nemo_launcher.evaluation.sampling import Sampling
    from nemo_launcher.evaluation.session import Session

DEVICES = ("auto", "cpu", "cuda")
_PROCESS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one prompt."""

    text: str
    """The new text, without the prompt and without surrounding spaces."""
    token_ids: list[int]
    """The new tokens, without the end-of-text token."""


@dataclass(frozen=True, slots=True)
class Score:
    """The loss of one record's answer."""

    nll_sum: float
    """The negative log-likelihood of the answer, in nats."""
    nll_mean: float
    """`nll_sum` divided by `answer_tokens`."""
    answer_tokens: int
    """The number of tokens in the loss."""


class Model:
    """A frozen base model that is ready to use; `Model.load` creates it.

    Loading an adapter replaces the one before and leaves the base's weights alone: the results are those of a model
    that was loaded with it, to the last bit. A failed call leaves the model as it was.
    """

    def __init__(self, session: Session, adapter: Path | None, names: Callable[[Problem], Problem]) -> None:
        self._session, self._adapter, self._names = session, adapter, names

    @classmethod
    def load(
        cls,
        base: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        dtype: str | int | torch.dtype = "32",
        device: str = "auto",
        settings: Mapping[str, object] | Sequence[str] = (),
        names: Callable[[Problem], Problem] = in_python,
    ) -> Model:
        """Load a base `.nemo` and, optionally, an adapter `.nemo` that was trained on it.

        dtype: of the weights and activations: 32, 16, bf16 or torch's dtype. device: cpu, cuda, or auto for a GPU if
        there is one; all models of a process share it. settings: changed keys of the adapter's configuration, such as
        {"data.add_bos": True}. names: how errors name the arguments. Raises UserError for unreadable files, an adapter
        of another base, and invalid arguments.
        """
        with _errors_with(names), _quiet():
            base_file = checked_file(base, "--base")
            adapter_file = None if adapter is None else checked_file(adapter, "--adapter")
            import_engine()
            from nemo_launcher.evaluation.session import Session

            _use_device(device)
            session = Session.open(
                base_file,
                adapter_file,
                precision=precision_of(dtype),
                settings=settings_of(settings),
            )
        return cls(session, adapter_file, names)

    @property
    def adapter(self) -> Path | None:
        """The file of the loaded adapter; None for the base model alone."""
        return self._adapter

    def load_adapter(self, adapter: str | os.PathLike[str]) -> None:
        """Use another adapter of the same base, and its prompt settings, instead of the present one.

        Raises UserError, with the present adapter still in use, if the file is unreadable or of another base.
        """
        with _errors_with(self._names):
            file = checked_file(adapter, "--adapter")
            self._session = self._session.with_adapter(file)
        self._adapter = file

    def unload_adapter(self) -> None:
        """Return to the base model alone."""
        self._session = self._session.with_adapter(None)
        self._adapter = None

    def generate(
        self,
        prompts: Sequence[str] | Iterable[Mapping[str, object]] | os.PathLike[str],
        *,
        template: str | None = None,
        answer_field: str | None = None,
        tokens_to_generate: int = 30,
        min_tokens_to_generate: int = 0,
        sample: bool = False,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 1234,
        batch_size: int = 16,
        results: Results | None = None,
    ) -> list[Generation]:
        """Return the continuation of each prompt, in order.

        prompts: texts to continue as they are; or records (dictionaries, or the Path of a data file), which fill the
        adapter's template. template, answer_field: another template for the records, and its field with the answer,
        which is left out of the prompt. Decoding is greedy unless sample, top_k, top_p, temperature or
        repetition_penalty is given; a prompt's answer depends neither on batch_size nor on the other prompts. results:
        receives each answer as soon as it is ready. Raises UserError for prompts that are too long, records that do not
        fit the template, values out of range, and when the model's output is not finite.
        """
        with _errors_with(self._names), _quiet():
            from nemo_launcher.evaluation.prompting import answer_prompts, answer_records
            from nemo_launcher.evaluation.sampling import Request

            sampling = sampling_of(
                tokens_to_generate=tokens_to_generate,
                min_tokens_to_generate=min_tokens_to_generate,
                seed=seed,
                sample=sample,
                top_k=top_k,
                top_p=top_p,
                temperature=temperature,
                repetition_penalty=repetition_penalty,
            )
            request = Request(sampling, checked_batch_size(batch_size))
            if are_texts(prompts):
                answers = answer_prompts(self._session, list(prompts), request, results)
            else:
                records = checked_records(prompts)
                answers = answer_records(self._session, records, template, answer_field, request, results)
        return [Generation(str(answer["prediction"]), _token_ids(answer)) for answer in answers]

    def score(
        self,
        records: Records,
        *,
        template: str | None = None,
        answer_field: str | None = None,
        batch_size: int = 16,
    ) -> list[Score]:
        """Return the loss of each record's answer as training computes it, in order.

        records: dictionaries, or the path of a data file. template, answer_field: a prompt template and its field with
        the answer; None for the adapter's. Raises UserError for records that do not fit the template or are too long,
        and for losses that are not finite.
        """
        with _errors_with(self._names), _quiet():
            from nemo_launcher.evaluation.scoring import score

            size = checked_batch_size(batch_size)
            session = self._session
            samples = session.samples(checked_records(records), template, answer_field, session.encoder())
            found = score(session.base, samples, batch_size=min(size, len(samples)))
            return [Score(**values) for values in found]  # type: ignore[arg-type]  # answer_tokens is an int


def import_engine() -> None:
    """Import everything that a model needs: seconds, which the console command shortens (runtime.startup)."""
    from nemo_launcher.evaluation import prompting, scoring, session  # noqa: F401 (for later)


def sampling_of(
    *,
    sample: bool = False,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    repetition_penalty: float | None = None,
    **lengths: int,
) -> Sampling:
    """Return the sampling settings of Model.generate's arguments; lengths: tokens and seed, as in Sampling.

    Raises UserError for values out of range.
    """
    from nemo_launcher.evaluation.sampling import Sampling

    if not isinstance(sample, bool):
        raise UserError(Problem("inference.sample", f"{sample!r} is not True or False", "sample=True"))
    drawing = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "repetition_penalty": repetition_penalty}
    chosen: dict[str, Any] = {name: value for name, value in drawing.items() if value is not None}
    return Sampling(**chosen, **lengths, greedy=not (sample or chosen))


@contextlib.contextmanager
def _errors_with(names: Callable[[Problem], Problem]) -> Iterator[None]:
    """Raise the UserErrors of the body with other names for the arguments."""
    try:
        yield
    except UserError as error:
        raise UserError(map(names, error.problems)) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide libraries' warnings, and leave the process's environment variables of ranks as they were."""
    before = {name: os.environ.get(name) for name in _PROCESS_VARIABLES}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _use_device(device: str) -> None:
    from nemo_launcher.runtime.ranks import use_accelerator

    if device not in DEVICES:
        raise UserError(Problem("device", f"no such device: {device!r}", did_you_mean(str(device), DEVICES)))
    use_accelerator(device, "device", "device='cpu', or leave it out")


def _token_ids(answer: Mapping[str, object]) -> list[int]:
    ids = answer["token_ids"]
    assert isinstance(ids, list)
    return ids


def as_result(score: Score) -> dict[str, object]:
    """Return a score as the console command writes it."""
    return dataclasses.asdict(score)
