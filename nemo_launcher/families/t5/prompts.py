# SPDX-License-Identifier: Apache-2.0
"""Encoding of a T5 model's prompt records as encoder and decoder token ids.

The prompt, without its answer, ends with the sentinel <extra_id_0>; the decoder starts with BOS or padding, the same
sentinel and the answer, as in T5's pretraining. Source: NeMo 1.20, T5PromptLearningDataset. By default values are
inserted into the template in one pass, and generation starts with the same token as training; `nemo_compat` fills in
one field after the other and always starts generation with BOS, as NeMo does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_launcher.data.choices import Branches, alike_problems, choices_of
from nemo_launcher.data.prompt_encoder import (
    PromptEncoder,
    PromptSettings,
    smallest_limit,
)
from nemo_launcher.data.record_forms import WITHOUT_CHATS
from nemo_launcher.data.templates import TaskTemplate, fill_template
from nemo_launcher.data.tokenizers import END_SENTINEL, FIRST_SENTINEL, Tokenizer
from nemo_launcher.errors import Problem
from nemo_launcher.families.t5.samples import T5Choices, T5Sample

if TYPE_CHECKING:  # this module must not import torch
    from nemo_launcher.families.t5.shape import T5Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class T5PromptEncoder(PromptEncoder):
    """Encodes records as samples."""

    max_decoder_length: int | None = None
    """The maximum number of decoder tokens; None for no limit."""
    decoder_starts_with_pad: bool = False
    """Whether the decoder starts with the padding token."""
    add_eos_to_decoder_output: bool = True
    """Whether the decoder's target ends with the end-of-text token."""
    add_sentinel_to_input: bool = True
    """Whether the encoder's input ends with a sentinel token."""
    ul2_prompt_token: str | None = None
    """A token before the prompt, for bases trained with UL2."""
    tokens_to_generate: int = 0
    """The maximum number of new tokens in an answer, in inference."""

    @property
    def sample_type(self) -> type[T5Sample]:
        """The type of its samples."""
        return T5Choices if self.with_choices else T5Sample

    def problems(self, templates: Sequence[TaskTemplate] = ()) -> list[Problem]:
        """Return the problems that affect all records, before the first one is read."""
        found = self.token_problems()
        if self._start is None:
            found.append(self._start_problem())
        named = {
            "add_sentinel_to_input": (self.add_sentinel_to_input, FIRST_SENTINEL, "False"),
            "add_eos_to_decoder_output": (not self.add_eos_to_decoder_output, END_SENTINEL, "True"),
            "ul2_prompt_token": (self.ul2_prompt_token is not None, str(self.ul2_prompt_token), "null"),
        }
        for key, (wanted, token, value) in named.items():
            if wanted and self.tokenizer.token_to_id(token) is None:
                what = f"the tokenizer has no token {token}"
                found.append(Problem(f"model.data.{key}", what, f"set {key}: {value}"))
        if self.max_decoder_length is not None and self.tokens_to_generate > self.max_decoder_length:
            what = f"{self.tokens_to_generate:,} tokens exceed the decoder's limit of {self.max_decoder_length:,}"
            found.append(Problem("inference.tokens_to_generate", what, f"{self.max_decoder_length} or less"))
        chats = [template.taskname for template in templates if template.is_chat]
        if chats:
            what = f"the template of {chats[0]!r} is a chat's, but a T5 model has no chat template"
            found.append(Problem("model.task_templates.template_format", what, WITHOUT_CHATS))
        for template in templates if self.for_train and not chats else ():
            if template.answer_field is None:
                what = f"the template of {template.taskname!r} has none, but a T5 model learns only answers"
                found.append(Problem("model.task_templates.answer_field", what, "set it to the field of the answer"))
        return found

    def encode(self, record: dict[str, object], template: TaskTemplate, source: str = "") -> T5Sample:
        """Return the sample of `record`, cut to max_seq_length if possible.

        A sample that is still longer must be dropped by the caller.
        """
        values = template.values(record, template.prompt_fields())
        text = fill_template(template, values, nemo_compat=self.nemo_compat)
        input_ids = self._with_special_tokens(self.tokenizer.text_to_ids(text))
        num_cut, whole_length = 0, len(input_ids)
        overflow = len(input_ids) - self.max_seq_length
        if overflow > 0 and template.truncate_field in values:
            input_ids = self._shorten_field(input_ids, values, template, overflow)
        elif overflow > 0 and not self.for_train:
            input_ids, num_cut = input_ids[overflow:], overflow
        num_shortened = 0 if num_cut else max(0, whole_length - len(input_ids))
        if self.with_choices:
            return self._with_choices(input_ids, record, template, source, num_shortened)
        decoder_ids = self._decoder_ids(str(record[str(template.answer_field)]) if self.for_train else None)
        return T5Sample(input_ids, decoder_ids, record, source, num_cut, num_shortened)

    def _with_choices(
        self,
        input_ids: list[int],
        record: dict[str, object],
        template: TaskTemplate,
        source: str,
        num_shortened: int,
    ) -> T5Choices:
        """Return the sample of a record with its choices. In training no prompt's start is cut."""
        choices = choices_of(record, template)
        sequences = [self._decoder_ids(choice) for choice in choices]
        branches = Branches.of(sequences, len(_as_list(self._start)) + len(self._sentinel()))
        return T5Choices(
            input_ids,
            max(sequences, key=len),
            record,
            source,
            num_shortened=num_shortened,
            num_shared=branches.shared,
            choice_ids=branches.ids,
            choice_owners=branches.owners,
            right=choices.index(str(record.get(str(template.answer_field), choices[0]))),
        )

    def encode_text(self, text: str, source: str) -> T5Sample:
        """Return the sample of a prompt without a template, for inference."""
        input_ids = self._with_special_tokens(self.tokenizer.text_to_ids(text.strip(" ")))
        return T5Sample(input_ids, _as_list(self._start), {}, source)

    def sample_problems(self, sample: T5Sample) -> list[Problem]:
        """Return a Problem if the answer exceeds the decoder's limit."""
        length = len(sample.decoder_ids) - 1
        if isinstance(sample, T5Choices):
            alike = alike_problems([choice.decoder_ids for choice in sample.sequences()], sample.source)
            if alike:
                return alike
        if self.max_decoder_length is None or length <= self.max_decoder_length:
            return []
        what = f"the answer has {length:,} tokens, but the decoder's limit is {self.max_decoder_length:,}"
        return [Problem(sample.source, what, "shorten the answer, or remove the line")]

    def remarks(self, samples: Sequence[T5Sample]) -> list[str]:
        """Return messages about prompts whose start or truncate_field was cut."""
        cut = [sample for sample in samples if sample.num_cut]
        remarks = self.shortened(samples)
        if cut:
            of_all = f"{len(cut):,} of {len(samples):,} prompts"
            remarks.append(f"{of_all} were cut to their last {self.max_seq_length:,} tokens")
        return remarks

    @property
    def _starts_with_pad(self) -> bool:
        """Whether the decoder starts with padding; NeMo always generates from BOS."""
        return self.decoder_starts_with_pad and (self.for_train or not self.nemo_compat)

    @property
    def _start(self) -> int | None:
        """The decoder's first token."""
        return self.tokenizer.pad_id if self._starts_with_pad else self.tokenizer.bos_id

    def _start_problem(self) -> Problem:
        if self._starts_with_pad:
            start, fix = "padding", "decoder_starts_with_pad: False"
        else:
            start, fix = (
                "BOS",
                "nemo_compat: False" if self.decoder_starts_with_pad else "decoder_starts_with_pad: True",
            )
        what = f"the decoder would start with {start}, but the tokenizer has no such token"
        return Problem("model.data.decoder_starts_with_pad", what, f"set {fix}")

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        bos = _as_list(self.tokenizer.bos_id) if self.add_bos else []
        ul2 = _as_list(self.tokenizer.token_to_id(self.ul2_prompt_token)) if self.ul2_prompt_token else []
        eos = _as_list(self.tokenizer.eos_id) if self.add_eos else []
        return [*bos, *ul2, *ids, *self._sentinel(), *eos]

    def _sentinel(self) -> list[int]:
        return _as_list(self.tokenizer.token_to_id(FIRST_SENTINEL)) if self.add_sentinel_to_input else []

    def _decoder_ids(self, answer: str | None) -> list[int]:
        """Return the decoder's tokens; answer: None for inference."""
        start = _as_list(self._start)
        if answer is None:
            return start
        end = self.tokenizer.eos_id if self.add_eos_to_decoder_output else self.tokenizer.token_to_id(END_SENTINEL)
        return [*start, *self._sentinel(), *self.tokenizer.text_to_ids(answer), *_as_list(end)]

    def _shorten_field(
        self, input_ids: list[int], values: Mapping[str, str], template: TaskTemplate, overflow: int
    ) -> list[int]:
        """Remove the last `overflow` tokens of truncate_field from the prompt, or all of the field."""
        field = str(template.truncate_field)
        space = " " if template.has_space_before(field) else ""
        field_ids = self.tokenizer.text_to_ids(space + values[field])
        start = _find(input_ids, field_ids)
        if start is not None:
            stop = start + len(field_ids)
            return input_ids[: max(start, stop - overflow)] + input_ids[stop:]
        # The field is tokenized differently in the prompt, so its text is shortened instead. The ids of a shorter text
        # need not be a prefix of the longer text's, so one cut may not be enough.
        while len(input_ids) > self.max_seq_length and field_ids:
            field_ids = field_ids[: max(0, len(field_ids) - (len(input_ids) - self.max_seq_length))]
            shorter = {**values, field: self.tokenizer.ids_to_text(field_ids).rstrip("\ufffd")}
            text = fill_template(template, shorter, nemo_compat=self.nemo_compat)
            input_ids = self._with_special_tokens(self.tokenizer.text_to_ids(text))
        return input_ids


def make_encoder(
    tokenizer: Tokenizer,
    shape: T5Shape,
    settings: PromptSettings,
    *,
    encoder_seq_length: int | None = None,
    nemo_compat: bool = False,
    tokens_to_generate: int | None = None,
    add_bos: bool | None = None,
    with_choices: bool = False,
) -> T5PromptEncoder:
    """Return the encoder for a training, or with `tokens_to_generate` for inference with its adapter.

    Prompts of inference have the special tokens of the training; add_bos is ignored. encoder_seq_length: of the
    training; None for the base's. with_choices: samples are T5Choices.
    """
    limited_by, max_seq_length = smallest_limit(encoder_seq_length, settings.max_seq_length, shape.encoder_seq_length)
    return T5PromptEncoder(
        tokenizer=tokenizer,
        add_bos=settings.add_bos,
        add_eos=settings.add_eos,
        max_seq_length=max_seq_length,
        limited_by=limited_by,
        for_train=tokens_to_generate is None,
        nemo_compat=nemo_compat,
        max_decoder_length=shape.decoder_seq_length,
        decoder_starts_with_pad=settings.decoder_starts_with_pad,
        add_eos_to_decoder_output=settings.add_eos_to_decoder_output,
        add_sentinel_to_input=settings.add_sentinel_to_input,
        ul2_prompt_token=settings.ul2_prompt_token,
        tokens_to_generate=tokens_to_generate or 0,
        with_choices=with_choices,
    )


def plain_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of `ids` up to the first <extra_id_1>, without special tokens.

    Source: NeMo 1.20, MegatronT5FinetuneModel.ids_to_text. It cuts at the first EOS before; here generation stops
    there.
    """
    kept = list(ids)
    for end in (tokenizer.eos_id, tokenizer.token_to_id(END_SENTINEL)):
        if end in kept:
            kept = kept[: kept.index(end)]
    return tokenizer.ids_to_text([token for token in kept if token not in tokenizer.special_ids])


def _as_list(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _find(sequence: Sequence[int], part: Sequence[int]) -> int | None:
    """Return the index of the first occurrence of `part` in `sequence`; None if there is none or `part` is empty."""
    starts = range(len(sequence) - len(part) + 1) if part else range(0)
    return next((start for start in starts if list(sequence[start : start + len(part)]) == list(part)), None)
