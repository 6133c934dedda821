# SPDX-License-Identifier: Apache-2.0
"""Encoding of a GPT model's prompt records as token ids, with the position where the loss starts.

By default a prompt that was cut to fit keeps its BOS and EOS, the loss starts at the first token of the answer, values
are inserted into the template in one pass, and inference does not see the answer. With `nemo_compat` token ids and loss
are NeMo's: a cut prompt loses BOS and EOS, and its loss starts one token early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from nemo_launcher.data.chat import messages_of
from nemo_launcher.data.choices import Branches, alike_problems, choices_of
from nemo_launcher.data.prompt_encoder import (
    LIMIT_FIXES,
    PromptEncoder,
    PromptSettings,
    smallest_limit,
)
from nemo_launcher.data.templates import TaskTemplate, fill_template
from nemo_launcher.data.tokenizers import ChatTokenizer, Tokenizer
from nemo_launcher.errors import Problem
from nemo_launcher.families.gpt.samples import GPTChoices, GPTSample

if TYPE_CHECKING:  # this module must not import torch
    from nemo_launcher.families.gpt.shape import GPTShape


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTPromptEncoder(PromptEncoder):
    """Encodes records as samples."""

    @property
    def sample_type(self) -> type[GPTSample]:
        """The type of its samples."""
        return GPTChoices if self.with_choices else GPTSample

    def problems(self, templates: Sequence[TaskTemplate] = ()) -> list[Problem]:
        """Return the problems that affect all records, before the first one is read."""
        found = [*self.token_problems(), *self.chat_problems(templates)]
        if self.max_seq_length < 1:
            what = f"{self.max_seq_length} tokens are left for a prompt"
            found.append(Problem(self.limited_by, what, LIMIT_FIXES[self.limited_by]))
        return found

    def encode(self, record: dict[str, object], template: TaskTemplate, source: str = "") -> GPTSample:
        """Return the sample of `record`, cut to max_seq_length if the template allows it.

        A sample that is still longer must be dropped by the caller.
        """
        if template.is_chat:
            return self._encode_chat(record, template, source)
        values = self._values(record, template)
        if self.with_choices:
            return self._encode_choices(record, values, template, source)
        return self._encode_values(record, values, template, source)

    def _encode_values(
        self, record: dict[str, object], values: dict[str, str], template: TaskTemplate, source: str
    ) -> GPTSample:
        """Return the sample of a record; shorten truncate_field in `values` if it does not fit."""
        ids = self.tokenizer.text_to_ids(self._render(values, template))
        input_ids = self._with_special_tokens(ids)
        name, whole_length = template.truncate_field, len(input_ids)
        if len(input_ids) > self.max_seq_length and name is not None and name in values:
            if self.nemo_compat:
                input_ids = self._truncate_as_nemo(values, name, template, len(input_ids) - self.max_seq_length)
            else:
                ids = self._truncate(values, name, template, ids)
                input_ids = self._with_special_tokens(ids)
        answer_start = self._answer_start(input_ids, ids, values, template)
        return GPTSample(input_ids, answer_start, record, source, max(0, whole_length - len(input_ids)))

    def _encode_chat(self, record: dict[str, object], template: TaskTemplate, source: str) -> GPTSample:
        """Return the sample of a conversation: the text of the base's chat template, which has its special tokens."""
        chat, messages = self.tokenizer.chat, messages_of(record)
        assert chat is not None  # chat_problems
        tokenizer = cast(ChatTokenizer, self.tokenizer)
        if not self.for_train:
            ids, _ = tokenizer.text_to_offsets(chat.prompt(messages, source))
            return GPTSample(ids, 0, record, source)
        text, spans = chat.training(messages, source)
        ids, offsets = tokenizer.text_to_offsets(text)
        if not template.answer_only_loss:
            return GPTSample(ids, 0, record, source)
        is_trained = [any(start < end and stop > begin for begin, end in spans) for start, stop in offsets]
        first = is_trained.index(True) if True in is_trained else len(ids)
        skipped = [place for place in range(first, len(ids)) if place and not is_trained[place]]
        return GPTSample(ids, first, record, source, skipped=skipped)

    def _encode_choices(
        self, record: dict[str, object], values: dict[str, str], template: TaskTemplate, source: str
    ) -> GPTChoices:
        """Return the sample of a record with its choices, whose prompt is cut so that the longest choice fits."""
        answer, choices = str(template.answer_field), choices_of(record, template)
        right, num_shortened = choices.index(values.get(answer, choices[0])), 0
        samples: list[GPTSample] = []
        for last in (False, True):  # after the first round the prompt is short enough for each choice
            samples = []
            for choice in choices:
                values[answer] = choice
                samples.append(self._encode_values(record, values, template, source))
                num_shortened = num_shortened if last else max(num_shortened, samples[-1].num_shortened)
        first = samples[0].input_ids
        common = min(_common_prefix_length(first, sample.input_ids) for sample in samples)
        shared = min([common, *(sample.answer_start for sample in samples)])
        branches = Branches.of([sample.input_ids for sample in samples], shared)
        longest = max(samples, key=lambda sample: len(sample.input_ids))
        return GPTChoices(
            longest.input_ids,
            longest.answer_start,
            record,
            source,
            num_shortened,
            num_shared=shared,
            choice_ids=branches.ids,
            choice_owners=branches.owners,
            unlearnt=[sample.answer_start - shared for sample in samples],
            right=right,
        )

    def encode_text(self, text: str, source: str) -> GPTSample:
        """Return the sample of a prompt without a template, for inference."""
        return GPTSample(self._with_special_tokens(self.tokenizer.text_to_ids(text.strip(" "))), 0, {}, source)

    def sample_problems(self, sample: GPTSample) -> list[Problem]:
        """Return the problems of answer choices; a sample that is too long may be dropped."""
        if not isinstance(sample, GPTChoices):
            return []
        return alike_problems([choice.input_ids for choice in sample.sequences()], sample.source)

    def remarks(self, samples: Sequence[GPTSample]) -> list[str]:
        """Return messages about prompts whose truncate_field was shortened."""
        return self.shortened(samples)

    def _values(self, record: dict[str, object], template: TaskTemplate) -> dict[str, str]:
        """Return the value of each field; inference omits the answer, except with nemo_compat."""
        withhold = not self.for_train and not self.nemo_compat
        names = template.prompt_fields() if withhold else template.fields()
        return template.values(record, names)

    def _render(self, values: dict[str, str], template: TaskTemplate) -> str:
        # a model continues from where the answer belongs, also if the template goes on behind it
        until = None if self.for_train else template.answer_field
        return fill_template(template, values, nemo_compat=self.nemo_compat, until=until)

    def _with_special_tokens(self, ids: list[int]) -> list[int]:
        bos = [self.tokenizer.bos_id] if self.add_bos and self.tokenizer.bos_id is not None else []
        eos = [self.tokenizer.eos_id] if self.add_eos and self.tokenizer.eos_id is not None else []
        return [*bos, *ids, *eos]

    def _truncate(self, values: dict[str, str], field: str, template: TaskTemplate, ids: list[int]) -> list[int]:
        """Shorten `field` in `values` from its end until the prompt fits or the field is empty; return the new ids."""
        budget = self.max_seq_length - self.add_bos - self.add_eos
        field_ids = self.tokenizer.text_to_ids(values[field])
        # The ids of a shorter text need not be a prefix of the longer text's, so one cut may not be enough.
        while len(ids) > budget and field_ids:
            field_ids = field_ids[: max(0, len(field_ids) - (len(ids) - budget))]
            # A cut inside a multi-byte character decodes to replacement characters.
            values[field] = self.tokenizer.ids_to_text(field_ids).rstrip("\ufffd")
            ids = self.tokenizer.text_to_ids(self._render(values, template))
        return ids

    def _truncate_as_nemo(self, values: dict[str, str], field: str, template: TaskTemplate, overflow: int) -> list[int]:
        """Cut one token too many off `field`, and omit BOS and EOS, as NeMo does."""
        field_ids = self.tokenizer.text_to_ids(values[field])
        values[field] = self.tokenizer.ids_to_text(field_ids[: -(overflow + 1)])
        return self.tokenizer.text_to_ids(self._render(values, template))

    def _answer_start(
        self, input_ids: list[int], ids: list[int], values: dict[str, str], template: TaskTemplate
    ) -> int:
        """Return the first position in the loss; ids: the prompt without BOS and EOS."""
        if not (self.for_train and template.answer_only_loss and template.answer_field is not None):
            return 0
        space = " " if template.has_space_before(template.answer_field) else ""
        answer_ids = self.tokenizer.text_to_ids(space + values.get(template.answer_field, ""))
        if self.nemo_compat:
            return max(0, len(input_ids) - len(answer_ids) - self.add_eos)
        if answer_ids and ids[-len(answer_ids) :] == answer_ids:
            boundary = len(ids) - len(answer_ids)
        else:  # the answer is tokenized differently after the prompt
            without_answer = {name: text for name, text in values.items() if name != template.answer_field}
            boundary = _common_prefix_length(ids, self.tokenizer.text_to_ids(self._render(without_answer, template)))
        return self.add_bos + boundary


def make_encoder(
    tokenizer: Tokenizer,
    shape: GPTShape,
    settings: PromptSettings,
    *,
    encoder_seq_length: int | None = None,
    nemo_compat: bool = False,
    tokens_to_generate: int | None = None,
    add_bos: bool | None = None,
    with_choices: bool = False,
) -> GPTPromptEncoder:
    """Return the encoder for a training, or for inference with its adapter.

    encoder_seq_length: of the training; None for the base's. tokens_to_generate: tokens reserved for the answer; None
    for training. add_bos: for inference; None for the training's value. with_choices: samples are GPTChoices.
    """
    limited_by, max_seq_length = smallest_limit(encoder_seq_length, settings.max_seq_length, shape.encoder_seq_length)
    if tokens_to_generate is None:
        return GPTPromptEncoder(
            tokenizer=tokenizer,
            add_bos=settings.add_bos,
            add_eos=settings.add_eos,
            max_seq_length=max_seq_length,
            for_train=True,
            nemo_compat=nemo_compat,
            limited_by=limited_by,
            with_choices=with_choices,
        )
    return GPTPromptEncoder(
        tokenizer=tokenizer,
        add_bos=settings.add_bos if add_bos is None else add_bos,
        add_eos=False,
        max_seq_length=shape.encoder_seq_length - tokens_to_generate,
        for_train=False,
        nemo_compat=nemo_compat,
        limited_by="tokens_to_generate",
    )


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
