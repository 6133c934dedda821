# SPDX-License-Identifier: Apache-2.0
"""Dropout of the base model, which NeMo leaves on while adapters train; on here only with `nemo_compat`.

Source: the trainer of NeMo 1.20 calls model.train() after it has frozen the base. The rates come from the base's
configuration.
"""

from __future__ import annotations

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from nemo_launcher.checkpoint.outline import dropout_rates
from nemo_launcher.files.values import Section
from nemo_launcher.megatron.attention import PackedAttention


def set_base_dropout(model: nn.Module, config: Section) -> None:
    """Set the rates of dropout (dropout_rates) that apply in train mode."""
    hidden, attention = dropout_rates(config)
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.hidden_dropout = hidden
        elif isinstance(module, PackedAttention):
            module.dropout = attention
        elif isinstance(module, LanguageModelEmbedding):
            module.embedding_dropout.p = hidden
