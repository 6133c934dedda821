# SPDX-License-Identifier: Apache-2.0
"""Whether FlexAttention with biases by position works on this machine, found out with small tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from nemo_launcher.megatron.flex_attention import Places, biased_by_position, mask_of_texts, row_attention
from nemo_launcher.megatron.kernel_check import Comparison, disagreement, with_gradients

_LENGTHS, _HEADS, _HEAD = (150, 37), 4, 64


def flex_error(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why FlexAttention cannot be used with biases, or None if it computes what torch's attention does."""
    return disagreement(_comparisons(device, dtype), dtype)


def _comparisons(device: torch.device, dtype: torch.dtype) -> Iterator[Comparison]:
    """Yield the attention of a row of two texts, causal and not, and that of each text with the same biases."""
    generator = torch.Generator().manual_seed(1)
    shape, longest = (sum(_LENGTHS), 1, _HEADS, _HEAD), max(_LENGTHS)
    row = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    bias = torch.randn(_HEADS, longest, longest, generator=generator).to(device, dtype)
    owners = torch.arange(len(_LENGTHS)).repeat_interleave(torch.tensor(_LENGTHS)).to(device)
    places = Places(owners, torch.cat([torch.arange(length) for length in _LENGTHS]).to(device))
    for causal in (False, True):
        mask, change = mask_of_texts(places, places, causal=causal), biased_by_position(bias, places, places)
        found = row_attention(*row, mask=mask, scale=0.2, change=change)
        hidden = torch.ones(longest, longest, dtype=torch.bool, device=device).triu(1)
        allowed = bias.masked_fill(hidden, float("-inf")) if causal else bias
        texts = zip(*(each.permute(1, 2, 0, 3).split(_LENGTHS, dim=2) for each in row), strict=True)
        apart = [
            scaled_dot_product_attention(q, k, v, attn_mask=allowed[None, :, :length, :length], scale=0.2)
            for (q, k, v), length in zip(texts, _LENGTHS, strict=True)
        ]
        expected = torch.cat(apart, 2).permute(2, 0, 1, 3)
        yield "FlexAttention", with_gradients([found], row), with_gradients([expected], row)
