# SPDX-License-Identifier: Apache-2.0
"""A base model, with or without an adapter, as a model of lm-evaluation-harness (extra `lm-eval`).

Tokens, truncation from the left and windows are those of the harness's own `hf` model, so that on the same weights the
results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation.continuations import Continuation, rate_continuations
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.prompting import answer_prompts
from nemo_launcher.evaluation.sampling import Request, Sampling
from nemo_launcher.evaluation.session import Session
from nemo_launcher.runtime.bars import Bar, new_bar
from nemo_launcher.runtime.ranks import use_accelerator

NAME = "nemo-launcher"
"""The model's name in the harness."""
GENERATED = 256
"""Maximum tokens of an answer if a task does not say, as with the harness's `hf` model."""
MEASURED = 16
"""The batch size for `auto`, which means measuring in the harness: 16 is that of `nemo-launcher score`."""
NOTHING = Continuation(0.0, True)
"""The rating of a continuation without tokens."""
T5 = "t5"
_ONLY_GPT = "is computed for GPT bases only, and this base is a T5"
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


@register_model(NAME)
class HarnessModel(TemplateLM):
    """The model that the harness asks. Raises UserError for what it cannot compute."""

    def __init__(
        self,
        base: str,
        adapter: str | None = None,
        precision: str = "32",
        settings: Sequence[str] = (),
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """Load the files, as `nemo-launcher score` does. The last three are options of the harness."""
        super().__init__()
        use_accelerator((device or "auto").partition(":")[0])
        self._session = Session.open(base, adapter, precision=precision, settings=settings)
        self._base, self._tokenizer = self._session.base, self._session.base.tokenizer
        self._is_t5 = self._base.family.name == T5
        self.batch_size = MEASURED if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def max_length(self) -> int:
        """The maximum number of tokens that the model reads: the base's, also if the adapter's training used fewer."""
        one_token = Request(Sampling(tokens_to_generate=1), self.batch_size)
        return self._session.encoder(one_token).max_seq_length + 1

    @property
    def eot_token_id(self) -> int | None:
        """The end-of-text token."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing else before it: BOS, or EOS without one."""
        for token in (self._tokenizer.bos_id, self._tokenizer.eos_id):
            if token is not None:
                return token
        what = "the tokenizer has neither BOS nor EOS, which comes before a text without a context"
        raise UserError(Problem("--base", what, "choose tasks with a context"))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the token ids of a text, with BOS in front if the adapter's `data.add_bos` says so."""
        with_bos = self._session.prompts.settings.add_bos if add_special_tokens is None else add_special_tokens
        bos = self._tokenizer.bos_id if with_bos else None
        return [*([] if bos is None else [bos]), *self._tokenizer.text_to_ids(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood (nats) and whether it is greedy, for each (texts, context, own tokens)."""
        self._refuse_t5("loglikelihood", "nemo-launcher score, or evaluation.metrics=[rank_classification]")
        pairs: dict[int, tuple[list[int], list[int]]] = {}
        for place, (_texts, context, own) in enumerate(requests):
            if len(own) > self.max_length:
                what = f"a continuation has {len(own):,} tokens, and {self.max_length:,} fit"
                raise UserError(Problem(f"request {place + 1}", what, "use another base, or a task with shorter texts"))
            if own:
                pairs[place] = (context[-(self.max_length + 1 - len(own)) :], own)
        rated = rate_continuations(self._base, list(pairs.values()), batch_size=self.batch_size)
        found = dict(zip(pairs, rated, strict=True))
        in_order = (found.get(place, NOTHING) for place in range(len(requests)))
        return [(rating.log_likelihood, rating.is_greedy) for rating in in_order]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood (nats) of whole texts, in windows that predict each token once."""
        self._refuse_t5("loglikelihood_rolling", "choose tasks that generate")
        windows = [(place, window) for place, request in enumerate(requests) for window in self._windows(*request.args)]
        found = self._loglikelihood_tokens([("", *window) for _, window in windows])
        sums = [0.0] * len(requests)
        for (place, _), (log_likelihood, _) in zip(windows, found, strict=True):
            sums[place] += log_likelihood
        return sums

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        ids = self.tok_encode(text)
        for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
            yield make_disjoint_window(window)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each request, up to its first stop text; requests with other settings run apart."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(str(request.args[1]), []).append(place)
        answers = [""] * len(requests)
        with new_bar(len(requests), "request") as bar:
            for places in groups.values():
                texts = [requests[place].args[0] for place in places]
                for place, answer in zip(places, self._generate(texts, requests[places[0]].args[1], bar), strict=True):
                    answers[place] = answer
        return answers

    def _generate(self, texts: Sequence[str], options: Mapping[str, Any], bar: Bar) -> Iterator[str]:
        """Yield the answers to prompts with the same settings."""
        options = normalize_gen_kwargs(dict(options), GENERATED)
        sampling = sampling_of(options)
        answers = self._answers_of_t5 if self._is_t5 else self._answers_of_gpt
        for text in answers(texts, sampling, bar):
            for stop in options["until"]:
                text = text.partition(stop)[0] if stop else text
            yield text

    def _answers_of_gpt(self, texts: Sequence[str], sampling: Sampling, bar: Bar) -> Iterator[str]:
        room = self.max_length - sampling.tokens_to_generate
        if room < 1:
            where = f"max_gen_toks={sampling.tokens_to_generate}"
            what = f"leaves no room for a prompt: {self.max_length:,} tokens fit"
            raise UserError(Problem(where, what, f"--gen_kwargs max_gen_toks={max(1, self.max_length // 2)}"))
        samples = [self._base.family.make_sample(self.tok_encode(text)[-room:], []) for text in texts]
        found = generate(self._base, samples, sampling, batch_size=self.batch_size, report=bar.update)
        return (self._base.family.text(self._tokenizer, ids) for ids in found)

    def _answers_of_t5(self, texts: Sequence[str], sampling: Sampling, bar: Bar) -> Iterator[str]:
        answers = answer_prompts(self._session, texts, Request(sampling, self.batch_size))
        bar.update(len(texts))
        return (str(answer["prediction"]) for answer in answers)

    def apply_chat_template(self, chat_history: object, add_generation_prompt: bool = True) -> str:
        """Refuse: prompts are those of the tasks."""
        raise UserError(Problem("--apply_chat_template", "is not available for this model", "leave it out"))

    def _refuse_t5(self, what: str, fix: str) -> None:
        if self._is_t5:
            raise UserError(Problem(what, _ONLY_GPT, fix))


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Return the sampling settings of a task's generation settings, as the harness normalizes them.

    Raises UserError for settings that have no counterpart, and for values out of range.
    """
    own = {"until", "do_sample", "max_gen_toks", *_SAMPLING}
    unknown = [Problem(f"gen_kwargs: {name}", "has no counterpart here", did_you_mean(name, own)) for name in options]
    problems = [problem for problem, name in zip(unknown, options, strict=True) if name not in own]
    if problems:
        raise UserError(problems)
    drawn = {name: options[name] for name in _SAMPLING if name in options} if options["do_sample"] else {}
    return Sampling(tokens_to_generate=options["max_gen_toks"], greedy=not options["do_sample"], **drawn)
