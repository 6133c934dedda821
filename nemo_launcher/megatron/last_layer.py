# SPDX-License-Identifier: Apache-2.0
"""The last layer of a GPT, which after attention continues only with the rows that the head needs.

No later layer needs keys and values of the other rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from torch import Tensor

from nemo_launcher.megatron.attention_plan import AttentionPlan
from nemo_launcher.megatron.frozen_layer import FrozenLayer


class LastLayer(FrozenLayer):
    """Megatron-core's layer that returns [n, b, h] if the plan selects n rows (AttentionPlan.last_rows)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.self_attention.core_attention.is_last = True
        self._local = threading.local()  # micro-batches run concurrently
        add_residual: Callable[..., Callable[..., Tensor]] = self.self_attn_bda  # type: ignore[has-type]
        self.self_attn_bda = lambda *options: partial(self._add_residual, add_residual(*options))

    def compute(self, *args: object, attention_mask: AttentionPlan, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        """Run the layer; attention_mask: the AttentionPlan."""
        self._local.rows = attention_mask.last_rows
        return super().compute(*args, attention_mask=attention_mask, **kwargs)

    def kept(self, hidden: Tensor) -> Tensor:
        """Return the selected rows, [n, b, h], or all."""
        rows: Tensor | None = self._local.rows
        return hidden if rows is None else hidden[rows]

    def _add_residual(self, add: Callable[..., Tensor], output: object, residual: Tensor, dropout: float) -> Tensor:
        return add(output, self.kept(residual), dropout)
