# SPDX-License-Identifier: Apache-2.0
"""The interface of prompt encoders, and what all families share: filling templates, length limits, remarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from nemo_launcher.config.sections.learning import LearningData
from nemo_launcher.data.record_forms import WITHOUT_CHATS
from nemo_launcher.data.samples import S, Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import Problem

LIMIT_FIXES = {
    "encoder_seq_length": "raise encoder_seq_length",
    "data.max_seq_length": "raise data.max_seq_length",
    "base": "shorten them: this is the base's limit",
    "tokens_to_generate": "lower tokens_to_generate, for which tokens of the base are reserved",
}
"""Advice about prompts that are too long, by the key that limits them."""


_DEFAULTS = {field.name: field.default for field in fields(LearningData)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """The keys of a `data` section that determine the tokens of prompts."""

    add_bos: bool
    """Whether BOS precedes the prompt."""
    add_eos: bool
    """Whether EOS follows it."""
    max_seq_length: int | None
    """The maximum number of tokens in a prompt; None for the model's limit."""
    decoder_starts_with_pad: bool
    """T5: whether the decoder starts with padding instead of BOS."""
    add_eos_to_decoder_output: bool
    """T5: whether the answer ends with EOS instead of <extra_id_1>."""
    add_sentinel_to_input: bool
    """T5: whether the prompt ends with <extra_id_0>."""
    ul2_prompt_token: str | None
    """T5: a token before the prompt, for bases trained with UL2."""

    @classmethod
    def of_training(cls, data: LearningData) -> PromptSettings:
        """Return the settings of a training job."""
        return cls.read({field.name: getattr(data, field.name) for field in fields(data)})

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> PromptSettings:
        """Return the settings in an adapter's archive, with a training's defaults for missing keys."""
        found = {field.name: data.get(field.name, _DEFAULTS.get(field.name)) for field in fields(cls)}
        switches = found.keys() - {"max_seq_length", "ul2_prompt_token"}
        return cls(**found | {key: bool(found[key]) for key in switches})


class SampleEncoder(Protocol[S]):
    """A family's encoder of records to samples."""

    @property
    def sample_type(self) -> type[S]: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_seq_length(self) -> int: ...
    @property
    def for_train(self) -> bool: ...
    @property
    def nemo_compat(self) -> bool: ...
    @property
    def limited_by(self) -> str:
        """The key that determines max_seq_length, one of LIMIT_FIXES."""

    def problems(self, templates: Sequence[TaskTemplate] = ()) -> list[Problem]:
        """Return the problems that affect all records, before the first one is read."""

    def encode(self, record: dict[str, object], template: TaskTemplate, source: str = "") -> S:
        """Return the sample of a record."""

    def encode_text(self, text: str, source: str) -> S:
        """Return the sample of a prompt without a template, for inference."""

    def sample_problems(self, sample: S) -> list[Problem]:
        """Return the problems that make a sample unusable."""

    def remarks(self, samples: Sequence[S]) -> list[str]:
        """Return messages to the user about these samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """The common part of the encoders of all families."""

    tokenizer: Tokenizer
    """The base model's tokenizer."""
    add_bos: bool
    """Whether the beginning-of-text token precedes the prompt."""
    add_eos: bool
    """Whether the end-of-text token ends it."""
    max_seq_length: int
    """The maximum number of tokens in `input_ids`, including special ones."""
    for_train: bool
    """Whether samples contain the answer."""
    nemo_compat: bool = False
    """Whether prompts are made as in NeMo."""
    limited_by: str = "encoder_seq_length"
    """The key that determines max_seq_length, one of LIMIT_FIXES."""
    with_choices: bool = False
    """Whether samples have all answer choices of their records (data.choices); for_train only."""

    def token_problems(self) -> list[Problem]:
        """Return a Problem for each requested token that the tokenizer does not have."""
        tokenizer = self.tokenizer
        wanted = {"add_bos": (self.add_bos, tokenizer.bos_id), "add_eos": (self.add_eos, tokenizer.eos_id)}
        return [
            Problem(f"model.data.{key}", "the tokenizer has no such token", f"set {key}: False")
            for key, (is_wanted, token_id) in wanted.items()
            if is_wanted and token_id is None
        ]

    def chat_problems(self, templates: Sequence[TaskTemplate]) -> list[Problem]:
        """Return a Problem if a template is a chat's, but the tokenizer has no chat template."""
        chats = [template.taskname for template in templates if template.is_chat]
        if not chats or self.tokenizer.chat is not None:
            return []
        what = f"the template of {chats[0]!r} is a chat's, but the base's tokenizer has no chat template"
        return [Problem("model.task_templates.template_format", what, WITHOUT_CHATS)]

    def shortened(self, samples: Sequence[Sample]) -> list[str]:
        """Return a message about the samples whose truncate_field was shortened to fit max_seq_length tokens."""
        num_cut = sum(1 for sample in samples if sample.num_shortened and len(sample.input_ids) <= self.max_seq_length)
        if not num_cut:
            return []
        what = f"{num_cut:,} of {len(samples):,} prompts were cut to {self.max_seq_length:,} tokens"
        return [f"{what}, at the end of their truncate_field"]


def smallest_limit(encoder_seq_length: int | None, max_seq_length: int | None, of_base: int) -> tuple[str, int]:
    """Return the smallest limit on a prompt's length: its key in LIMIT_FIXES, and the number of tokens."""
    limits = {
        "base": of_base,
        "encoder_seq_length": encoder_seq_length,
        "data.max_seq_length": max_seq_length,
    }
    return min(((key, int(limit)) for key, limit in limits.items() if limit), key=lambda pair: pair[1])
