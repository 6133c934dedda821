# SPDX-License-Identifier: Apache-2.0
"""The base's own dropout, which NeMo leaves on while adapters train and ours leaves off (`nemo_compat`).

Source: NeMo 1.20, whose trainer calls model.train() after the base was frozen. Rates are the base's configuration's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from nemo_launcher.megatron.attention import PackedAttention


def set_base_dropout(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Set the rates of hidden and attention dropout that take effect in train mode.

    T5 configurations hold them in the section of each stack; the encoder's count for both.
    """
    section = {**config, **(config.get("encoder") or {})}
    hidden, attention = (float(section.get(key) or 0.0) for key in ("hidden_dropout", "attention_dropout"))
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.hidden_dropout = hidden
        elif isinstance(module, PackedAttention):
            module.dropout = attention
        elif isinstance(module, LanguageModelEmbedding):
            module.embedding_dropout.p = hidden
