# SPDX-License-Identifier: Apache-2.0
"""Generation with a T5: keys and values of prompts are computed once, those of answers are cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_launcher.families.t5.attention import CrossStepPlan, EncodedPrompts, StepMask, StepPlan
from nemo_launcher.families.t5.model import FrozenT5, Row
from nemo_launcher.families.t5.packing import row
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.key_value_cache import KeyValueCache, Places
from nemo_launcher.megatron.packed_weight import any_parameter
from nemo_launcher.megatron.relay import relay
from nemo_launcher.megatron.transfer import on_device

NEMO_LENGTH = 40
"""The number of tokens that NeMo generates if the adapter's configuration has no decoder_seq_length."""


class T5Decoding:
    """The running samples of a T5; see families.decoding.Decoding."""

    def __init__(self, model: FrozenT5, device: torch.device, samples: Sequence[T5Sample], max_new_tokens: int) -> None:
        self.model, self.device, self.samples = model, device, samples
        self.max_new_tokens = max_new_tokens
        self.prompts, self.answers = KeyValueCache(), KeyValueCache()
        decodes = parallel.pipeline_rank() in self.model.decoder_stages
        longest = max((len(sample.input_ids) for sample in samples), default=0)
        self.biases = self.model.step_biases(max_new_tokens, longest) if decodes and samples else (None, None)

    def step(self, tokens: Sequence[int], joining: Sequence[int]) -> Tensor:
        """Run one new token of each running sample, and the prompts of samples (indices) that join after them.

        Returns the logits of each sample's next token, [running samples, vocabulary].
        """
        prompts = self._encoded(joining)
        tokens = [*tokens, *(self.samples[sample].decoder_ids[0] for sample in joining)]
        so_far = [*self.answers.lengths, *(0 for _ in joining)]
        self.answers.lengths = [length + 1 for length in so_far]
        self.answers.reserve(len(tokens), self.max_new_tokens)
        new, places = on_device(torch.tensor([tokens, so_far]), self.device)
        bias, cross_bias = self.biases
        rows = torch.arange(len(tokens), device=self.device)
        plan = StepPlan(self.answers, (rows, places, rows), StepMask(places + 1, max(so_far) + 1, bias, places))
        lengths = on_device(torch.tensor(self.prompts.lengths), self.device)
        cross_plan = CrossStepPlan(StepMask(lengths, max(self.prompts.lengths), cross_bias, places))
        return relay(
            lambda received: self.model.step(new, places, prompts, plan, cross_plan, received),
            self.model.decoder_stages,
            hidden=(1, len(tokens), self.model.config.hidden_size),
            result=(len(tokens), self.model.shape.vocab_size),
            like=any_parameter(self.model),
        )

    def _encoded(self, joining: Sequence[int]) -> EncodedPrompts:
        """Run the prompts of joining samples through the encoder; return the prompts of all running samples."""
        if not joining:
            return EncodedPrompts(self.prompts, None, None)
        prompts = row([self.samples[sample].input_ids for sample in joining])
        places, start = Places(), 0
        for number, length in enumerate(prompts.lengths, start=len(self.prompts.lengths)):
            places.add(number, 0, range(start, start + length))
            start += length
        self.prompts.lengths += prompts.lengths
        self.prompts.reserve(len(self.prompts.lengths), max(prompts.lengths))
        hidden = self._encode(Row(on_device(prompts.tokens, self.device), prompts.lengths))
        return EncodedPrompts(self.prompts, hidden, places.index(self.device))

    def _encode(self, prompts: Row) -> Tensor:
        """Return the encoder's output, [s, 1, hidden], after its pipeline stages."""
        shape = (prompts.tokens.numel(), 1, self.model.config.hidden_size)
        return relay(
            lambda received: self.model.encode(prompts, received),
            self.model.encoder_stages,
            hidden=shape,
            result=shape,
            like=any_parameter(self.model),
        )

    def select(self, kept: Sequence[int]) -> None:
        """Keep only some of the running samples (indices into them), in this order."""
        self.prompts.select(kept)
        self.answers.select(kept)
