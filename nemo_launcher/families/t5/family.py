# SPDX-License-Identifier: Apache-2.0
"""The T5 family: an encoder of prompts, and a decoder of answers with cross-attention."""

from __future__ import annotations

from nemo_launcher.families.family import Family
from nemo_launcher.families.hidden import HiddenStates
from nemo_launcher.families.stacks import Stack
from nemo_launcher.families.t5 import generation, hf, layouts, packing, prompts
from nemo_launcher.families.t5.forward import hidden_before, run_t5
from nemo_launcher.families.t5.hf_layouts import LAYOUTS
from nemo_launcher.families.t5.model import FrozenT5, build_t5
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.families.t5.shape import T5Shape, is_gated


def is_t5_key(key: str) -> bool:
    """Return whether a key of an adapter's state dict names a T5 layer (`t5_stacks`)."""
    return key.startswith(("enc_dec_model.", "encoder:", "decoder:"))


def t5_stacks(model: FrozenT5, shape: T5Shape) -> list[Stack]:
    """Return the encoder and decoder stacks.

    Source of the paths: NeMo 1.20, MegatronT5BaseAdapterModel.state_dict and, for IA3, that of
    MegatronT5InfusedAdapterModel.
    """
    return [
        Stack(
            name,
            f"enc_dec_model.enc_dec_model.{name}.model.layers",
            () if getattr(model, name) is None else getattr(model, name).layers,
            getattr(shape, name),
            {"ia3": f"{name}:model.layers"},
        )
        for name in ("encoder", "decoder")
    ]


T5 = Family(
    name="t5",
    title="T5",
    model_class=FrozenT5,
    owns_adapter=lambda keys: any(map(is_t5_key, keys)),
    renaming=layouts.renaming,
    is_gated=is_gated,
    embedding="encoder_embedding.word_embeddings.weight",
    read_shape=T5Shape.from_config,
    build=build_t5,
    stacks=t5_stacks,
    stack_shapes=lambda shape: {"encoder": shape.encoder, "decoder": shape.decoder},
    prompt_encoder=prompts.make_encoder,
    nemo_length=lambda decoder_seq_length: decoder_seq_length or generation.NEMO_LENGTH,
    text=prompts.plain_text,
    joint=" ",
    pack=packing.pack,
    make_sample=lambda prompt, answer: T5Sample(prompt, [0, *answer], {}, ""),
    shares_prefixes=False,
    pack_rows=None,
    run_row=None,
    run=run_t5,
    hidden=HiddenStates(
        stack="encoder",
        is_causal=False,
        owners=packing.T5Batch.encoder_owners,
        compute=hidden_before,
        attach=packing.T5Batch.with_hidden,
    ),
    start_decoding=generation.T5Decoding,
    layouts=LAYOUTS,
    source_layout=lambda config, source: None,
    hugging_face=dict.fromkeys(("t5", "mt5", "umt5"), hf),
)
