# SPDX-License-Identifier: Apache-2.0
"""Attention over packed rows that hold several prompts as trees of shared prefixes (megatron.attention_plan)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.megatron.block_attention import attention_in_blocks
from nemo_launcher.megatron.compilation import compile_error
from nemo_launcher.megatron.flex_attention import biased_by_alibi, row_attention
from nemo_launcher.megatron.flex_check import flex_error
from nemo_launcher.megatron.fused import Fusable, rotate
from nemo_launcher.megatron.packed_weight import any_parameter
from nemo_launcher.megatron.rotary import Rotation


class PackedAttention(Fusable, MegatronModule):
    """Megatron-core's core attention for packed rows, on torch's scaled_dot_product_attention.

    Takes the constructor arguments of DotProductAttention in megatron-core 0.16, so that a ModuleSpec can name it.
    """

    adds_biases = False
    """Whether scores have biases by position besides ALiBi's."""

    def __init__(self, config: object, layer_number: int, softmax_scale: float | None = None, **_: object) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self.is_last = False  # whether this is the model's last layer
        self.dropout = 0.0  # of attention probabilities, in train mode (training.base_dropout)
        self.uses_flex = False  # set_attention_backend
        self.rotation: str | None = "global"  # the name of the rotary positions; None for a layer without them
        self.window: int | None = None  # the number of tokens, the own one included, that a token attends to
        self.softcap: float | None = None  # scores x become softcap * tanh(x / softcap)
        # Each returns keys and values that all tokens attend to, [n, groups, head_dim]; a plain list, so as not to
        # register them.
        self.prefixes: list[nn.Module] = []

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: AttentionPlan, **_: object) -> Tensor:
        """Return the attention output, [s, b, heads * head_dim].

        query: [s, b, heads, head_dim]; key, value: [s, b, groups, head_dim].
        """
        plan = attention_mask
        rotation = plan.rotations.get(self.rotation or "")
        if rotation is not None:
            query, key = self._rotated(rotation, query, key)
        if plan.path is not None:
            key, value = plan.path.extend(self.layer_number, key, value)
        continues = len(key) > len(query)
        parts = []
        if plan.decoding is not None:
            plan.decoding.store(self.layer_number, key[:, 0], value[:, 0])
            prefix = self._prefix(key.dtype) if self.prefixes else None
            attended = plan.decoding.attend(
                *(self.layer_number, query[:, 0], self._scale(query), prefix),
                window=self.window,
                softcap=self.softcap,
                alibi=plan.alibi,
            )
            parts = [attended[:, None]]
        whole_row = self.runs_whole_rows() and not self._is_one_text(plan)
        if whole_row and plan.decoding is None and not continues:
            parts = [self._row(plan, query, key, value)]
        elif plan.decoding is None and self._uses_blocks(query):
            parts = [self._in_blocks(plan, 0, len(plan.groups), query, key, value)]
        elif continues:
            parts = [self._masked(plan, 0, *(x.permute(1, 2, 0, 3) for x in (query, key, value)))]
        else:
            parts += self._groups(plan, query, key, value)
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.is_last and plan.last_rows is not None:
            output = output[plan.last_rows]
        return output.flatten(2)

    def _rotated(self, rotation: Rotation, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.fuses and not rotation.interleaved:
            return rotate(query, key, rotation.cos, rotation.sin)
        return rotation.apply_rotary(query), rotation.apply_rotary(key)

    def _row(self, plan: AttentionPlan, *row: Tensor) -> Tensor:
        """Return the output of a whole row in one kernel; row: its query, key and value."""
        device = row[0].device
        mask = plan.row_mask(device, plan.needed(self.window))
        change = None if plan.alibi is None else biased_by_alibi(plan.alibi, plan.row_depths(device))
        return row_attention(*row, mask=mask, scale=self._scale(row[0]), change=change)

    def _groups(self, plan: AttentionPlan, *row: Tensor) -> list[Tensor]:
        """Return the output of each group; row: query, key and value of the whole row."""
        if not plan.groups:
            return []
        if len(plan.groups) == 1 and plan.groups[0].start == 0:
            return [self._group(plan, 0, *row)]
        # A single split: the gradient of each slice would be as large as the row, with three slices per group.
        before = plan.groups[0].start  # tokens of decoding samples
        sizes = [before, *(group.stop - group.start for group in plan.groups)]
        _, *insides = zip(*(tensor.split(sizes) for tensor in row), strict=True)
        return [self._group(plan, index, *inside) for index, inside in enumerate(insides)]

    def _group(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return a group's output; query, key and value are those of its tokens."""
        group = plan.groups[index]
        if group.cached and plan.decoding is not None:
            return self._attend_to_cache(plan, index, query, key, value)
        if self._uses_blocks(query):
            return self._in_blocks(plan, index, index + 1, query, key, value)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        plain = len(group.lengths) == 1 and plan.needed(self.window) is None and plan.alibi is None
        mask = None if plain else self._mask(plan, index, q)
        return self._attend(q, k, v, mask, is_causal=plain).permute(2, 0, 1, 3)

    def _is_one_text(self, plan: AttentionPlan) -> bool:
        """Return whether the row is one text with causal attention, for which torch's own kernels are faster."""
        plain = len(plan.groups) == 1 and len(plan.groups[0].lengths) == 1
        return plain and plan.alibi is None and plan.needed(self.window) is None

    def runs_whole_rows(self) -> bool:
        """Return whether FlexAttention computes all texts of a row at once."""
        return self.uses_flex and not (self._has_dropout() or self.prefixes)

    def _has_dropout(self) -> bool:
        return self.training and self.dropout > 0.0

    def _uses_blocks(self, query: Tensor) -> bool:
        return query.device.type == "cpu" and query.size(1) == 1 and not self._has_dropout() and not self.prefixes

    def _prefix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the keys and values that all tokens attend to, each [groups, n, head_dim]."""
        keys, values = zip(*(prefix() for prefix in self.prefixes), strict=True)
        return torch.cat(keys).transpose(0, 1).to(dtype), torch.cat(values).transpose(0, 1).to(dtype)

    def _prepend_prefix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return keys and values, [b, groups, n + tokens, head_dim], and mask, extended by the prefix."""
        if mask is None and is_causal:
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        keys, values = (part.expand(k.size(0), -1, -1, -1) for part in self._prefix(k.dtype))
        if mask is not None and mask.size(-1) == k.size(2):
            mask = pad(mask, (keys.size(2), 0), value=True if mask.dtype == torch.bool else 0.0)
        return torch.cat((keys, k), 2), torch.cat((values, v), 2), mask

    def _in_blocks(
        self, plan: AttentionPlan, first: int, last: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Return the output of the groups `first` up to `last`; query, key and value are those of their tokens."""
        rows = (x.squeeze(1) for x in (query, key, value))
        blocks = plan.blocks(first, last, query, plan.needed(self.window))
        output = attention_in_blocks(
            *rows, blocks=blocks, scale=self._scale(query), softcap=self.softcap, alibi=plan.alibi
        )
        return output.unsqueeze(1)

    def _attend_to_cache(self, plan: AttentionPlan, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the output of a group with a cached prefix; query, key and value: of its tokens in the row."""
        assert plan.decoding is not None
        prefix = plan.decoding.prefix_of(self.layer_number, index, plan.groups[index].cached)
        q, *own = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        k, v = (torch.cat(parts, dim=2) for parts in zip(prefix, own, strict=True))
        return self._masked(plan, index, q, k, v)

    def _masked(self, plan: AttentionPlan, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output of a group, [s, b, heads, head_dim]; k, v: behind those of the tokens that it continues."""
        return self._attend(q, k, v, self._mask(plan, index, q)).permute(2, 0, 1, 3)

    def _mask(self, plan: AttentionPlan, index: int, q: Tensor) -> Tensor:
        """Return the mask of a group, or its biases by ALiBi, which include those of the prefix."""
        window = plan.needed(self.window)
        if plan.alibi is None:
            return plan.group_mask(index, q.device, window)
        learned = sum(len(prefix()[0]) for prefix in self.prefixes)
        return plan.group_bias(index, q, window, learned)

    def _scale(self, query: Tensor) -> float:
        return self.softmax_scale or query.size(-1) ** -0.5

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        if self.prefixes:
            k, v, mask = self._prepend_prefix(q, k, v, mask, is_causal)
            is_causal = False
        grouped = q.size(1) != k.size(1)
        if grouped and mask is not None and q.is_cuda:
            # Of torch's kernels only cuDNN's supports a mask with grouped queries, and it builds a plan for each new
            # length.
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
            grouped = False
        if self.softcap is not None:
            return self._capped(q, k, v, mask, is_causal)
        return scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.softmax_scale,
            enable_gqa=grouped,
        )

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """Return the output with capped scores, which torch's kernels lack, [b, heads, tokens, head_dim]."""
        assert self.softcap is not None
        k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
        if is_causal:
            mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
        scores = torch.tanh(q @ k.transpose(2, 3) * (self._scale(q) / self.softcap)) * self.softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        wide = torch.promote_types(q.dtype, torch.float32)
        return dropout(torch.softmax(scores, -1, dtype=wide).to(q.dtype), self.dropout, self.training) @ v


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Select the GPU kernel for attention: `sdpa`, called for each group or sample, or `flex`, for the whole row.

    `auto` selects flex where it is known to be faster (_flex_is_faster) and torch.compile works. On a CPU this has no
    effect: megatron.block_attention is used there.
    """
    modules = [module for module in model.modules() if isinstance(module, PackedAttention)]
    weight = any_parameter(model)
    uses_flex = weight.is_cuda and backend != "sdpa"
    if uses_flex and backend == "auto":
        uses_flex = _flex_is_faster(modules, weight.dtype) and compile_error(weight.device) is None
        if uses_flex and any(module.adds_biases for module in modules):
            uses_flex = flex_error(weight.device, weight.dtype) is None
    for module in modules:
        module.uses_flex = uses_flex and module.softcap is None


def is_one_kernel_a_row(model: nn.Module) -> bool:
    """Return whether attention over a whole row is one kernel in every layer, so that it keeps no masks."""
    modules = [module for module in model.modules() if isinstance(module, PackedAttention)]
    return all(module.runs_whole_rows() for module in modules)


def _flex_is_faster(modules: Sequence[PackedAttention], dtype: torch.dtype) -> bool:
    """Return whether FlexAttention was measured to be faster: 16-bit dtypes, common head sizes."""
    return dtype.itemsize == 2 and all(16 <= module.config.kv_channels <= 128 for module in modules)
