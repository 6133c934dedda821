# SPDX-License-Identifier: Apache-2.0
"""Multi-modal Hugging Face architectures whose language model can be converted alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_launcher.checkpoint.architectures.architecture import Architecture, Settings
from nemo_launcher.checkpoint.architectures.gemma import GEMMA3
from nemo_launcher.checkpoint.architectures.mistral import MINISTRAL3, MISTRAL


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiModal:
    """A Hugging Face architecture of a language model and parts that see images."""

    name: str
    """Its name in `architectures` of config.json."""
    kind: str
    """Its `model_type`."""
    texts: tuple[Architecture, ...]
    """Its possible language models; the first is that of a `text_config` without a `model_type`."""
    others: tuple[str, ...]
    """Keys of config.json that describe its other parts, or tokens of images, which are words like any other here."""
    defaults: Settings = field(default_factory=dict)
    """transformers' defaults of the required keys, which published files leave out of `text_config`."""
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys of `text_config` with the values for which it computes the same with and without the other parts."""
    is_tied: bool | None = None
    """Whether its embedding is the head if no key says so; None: if no head is stored."""


_IMAGES = ("vision_config", "image_token_index", "image_token_id")
_GEMMA3 = MultiModal(
    name="Gemma3ForConditionalGeneration",
    kind="gemma3",
    texts=(GEMMA3,),
    others=(
        *(*_IMAGES, "mm_tokens_per_image"),
        *("boi_token_index", "boi_token_id", "eoi_token_index", "eoi_token_id"),
    ),
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
    # the language model alone caps logits; the whole model does not (transformers 5.23)
    fixed={"final_logit_softcapping": ()},
    is_tied=True,
)
_MISTRAL3 = MultiModal(
    name="Mistral3ForConditionalGeneration",
    kind="mistral3",
    texts=(MISTRAL, MINISTRAL3),
    others=(
        *(*_IMAGES, "multimodal_projector_bias", "projector_hidden_act", "spatial_merge_size"),
        "vision_feature_layer",
    ),
)
MULTI_MODAL: dict[str, MultiModal] = {one.name: one for one in (_GEMMA3, _MISTRAL3)}
"""The architectures by their names in config.json."""
LAYOUTS: tuple[dict[str, str | None], ...] = (
    {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": None,
        "multi_modal_projector.": None,
    },
    {
        "model.language_model.": "model.",
        "lm_head.": "lm_head.",
        "model.vision_tower.": None,
        "model.multi_modal_projector.": None,
    },
)
"""The beginnings of names in files -> those of the language model, or None for other parts: that of most
files, and that of the modules in transformers 5."""
