# SPDX-License-Identifier: Apache-2.0
"""Attention over a whole row in one GPU kernel: torch's FlexAttention, which skips fully masked blocks.

Source: Dong et al. 2024, "Flex Attention: A Programming Model for Generating Optimized Attention Kernels"
(arXiv:2412.05496). A tree of prefixes needs one number per token: the end of the tokens that see it
(megatron.attention.Group.visible_until).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.megatron.alibi import Alibi

if TYPE_CHECKING:  # slow to import, and not used on a CPU
    from torch.nn.attention.flex_attention import BlockMask

ScoreChange = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A score, and the indices of its batch element, head, query and key -> the changed score."""
_KERNELS = 64
"""The maximum number of kernels per process; torch raises an error beyond it."""


def block_mask(visible_until: Tensor, window: tuple[int, Tensor] | None = None) -> BlockMask:
    """Return the mask in which token k is visible to the tokens from k up to visible_until[k]; visible_until: [s].

    window: the number of tokens, the own one included, that a token attends to, and the place of each token in its own
    text, [s].
    """

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < visible_until[key])

    def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert window is not None
        return sees(batch, head, query, key) & (window[1][query] - window[1][key] < window[0])

    count = len(visible_until)
    return _make_mask(sees if window is None else sees_near, count, count, visible_until.device)


def _make_mask(sees: Callable[..., Tensor], queries: int, keys: int, device: torch.device) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(sees, None, None, queries, keys, device=str(device))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a row lie."""

    owners: Tensor
    """The text of each token, [s]."""
    depths: Tensor
    """The place of each token in its text, counted from 0, [s]."""


def mask_of_texts(queries: Places, keys: Places, *, causal: bool) -> BlockMask:
    """Return the mask in which queries see the keys of their text, with `causal` up to their own place."""

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = queries.owners[query] == keys.owners[key]
        return same & (keys.depths[key] <= queries.depths[query]) if causal else same

    return _make_mask(sees, len(queries.owners), len(keys.owners), queries.owners.device)


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: BlockMask, scale: float, change: ScoreChange | None = None
) -> Tensor:
    """Return the attention output, [s, b, heads, head_dim].

    query: [s, b, heads, head_dim]; key, value: [s, b, groups, head_dim]; mask: of the row's tokens (block_mask,
    mask_of_texts); change: of the scaled scores.
    """
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    output: Tensor = _kernel()(
        q,
        k,
        v,
        block_mask=mask,
        score_mod=change,
        scale=scale,
        enable_gqa=q.size(1) != k.size(1),
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},  # not the kernel for decoding, which has none of these masks
    )
    return output.permute(2, 0, 1, 3)


def biased_by_position(bias: Tensor, queries: Places, keys: Places) -> ScoreChange:
    """Return the function that adds a bias by the places of query and key; bias: [heads, places, places]."""

    def change(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[head, queries.depths[query], keys.depths[key]]

    return change


def biased_by_alibi(alibi: Alibi, depths: Tensor) -> ScoreChange:
    """Return the function that adds ALiBi's biases; depths: the place of each token in its own text, [s]."""
    if alibi.rounded_scale is None:
        slopes, places = alibi.slopes, depths.float()

        def by_slope(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + slopes[head] * (places[key] - places[query])

        return by_slope
    heights = alibi.heights(depths)

    def by_height(score: Tensor, _batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + (heights[head, key] - heights[head, query])

    return by_height


@lru_cache(maxsize=1)
def _kernel() -> Callable[..., Tensor]:
    """Return the kernel, compiled once for rows of any length.

    It is recompiled for other dtypes, numbers of heads and masks, for steps without gradients, and for length 1. Beyond
    torch's default limit of 8 it would run uncompiled and materialize all scores of a row.
    """
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # its name in torch 2.6
    setattr(config, limit, max(getattr(config, limit), _KERNELS))
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return compiled
