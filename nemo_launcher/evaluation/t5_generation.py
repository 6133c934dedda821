"""Generation with a T5: the prompt's keys and values are computed once, the answer's are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_launcher.data.t5_batching import row
from nemo_launcher.data.t5_prompts import T5Sample
from nemo_launcher.models import parallel
from nemo_launcher.models.attention import KeyValueCache
from nemo_launcher.models.relay import relay
from nemo_launcher.models.t5 import Row
from nemo_launcher.models.t5_attention import CrossStepPlan, EncodedPrompts, StepPlan

if TYPE_CHECKING:
    from nemo_launcher.checkpoint.base import Base


class T5Decoding:
    """The state of a batch of samples; every sample has as many decoder tokens as the others.

    logits: of each sample's next token, [samples, vocabulary].
    """

    def __init__(self, base: Base, samples: Sequence[T5Sample], max_new_tokens: int) -> None:
        self.model = base.model
        prompts = row([sample.input_ids for sample in samples])
        prompts = Row(prompts.tokens.to(base.device), prompts.lengths)
        lengths = torch.tensor(prompts.lengths, device=base.device)
        width = int(lengths.max())
        places = torch.arange(width, device=base.device)
        index = (lengths.cumsum(0) - lengths)[:, None] + torch.minimum(places, lengths[:, None] - 1)
        mask = (places < lengths[:, None])[:, None, None, :]
        self.prompts = EncodedPrompts(self._encode(prompts), index, mask)
        nothing_yet = torch.zeros(len(samples), dtype=torch.long, device=base.device)
        self.cache = KeyValueCache(samples=len(samples), slots=max_new_tokens, lengths=nothing_yet)
        decodes = parallel.pipeline_rank() in self.model.decoder_stages
        self.biases = self.model.step_biases(max_new_tokens, width) if decodes else (None, None)
        self.num_tokens = 0
        self.logits = self.step(torch.tensor([sample.decoder_ids[0] for sample in samples], device=base.device))

    def step(self, tokens: Tensor) -> Tensor:
        """Run one new token a sample, [samples]; return the logits of the next, [samples, vocabulary]."""
        bias, cross_bias = self.biases
        plan = CrossStepPlan(self.prompts.mask, cross_bias, self.num_tokens)
        step = StepPlan(self.cache, bias)
        logits = relay(
            lambda received: self.model.step(tokens, self.prompts, step, plan, received),
            self.model.decoder_stages,
            hidden=(1, len(tokens), self.model.config.hidden_size),
            result=(len(tokens), self.model.shape.vocab_size),
            like=next(self.model.parameters()),
        )
        self.cache.lengths = self.cache.lengths + 1
        self.num_tokens += 1
        return logits

    def _encode(self, prompts: Row) -> Tensor:
        """Return the encoder's output, [s, 1, hidden], after its pipeline stages."""
        shape = (prompts.tokens.numel(), 1, self.model.config.hidden_size)
        return relay(
            lambda received: self.model.encode(prompts, received),
            self.model.encoder_stages,
            hidden=shape,
            result=shape,
            like=next(self.model.parameters()),
        )

    def select(self, samples: Tensor) -> None:
        """Go on with the given samples alone (indices, [kept])."""
        self.prompts.select(samples)
        self.cache.select(samples)


def inference_section(
    inference: Mapping[str, Any], adapter_config: Mapping[str, Any], nemo_compat: bool
) -> Mapping[str, Any]:
    """Return the `inference` section that counts.

    NeMo reads none of it for T5: it generates decoder_seq_length tokens (of the adapter's configuration, 40 without)
    greedily. What follows the end of an answer is cut off there, so that ours may stop at it.
    """
    if not nemo_compat:
        return inference
    length = int(adapter_config.get("decoder_seq_length") or 40)
    return {**inference, "greedy": True, "tokens_to_generate": length, "min_tokens_to_generate": 0}
