# SPDX-License-Identifier: Apache-2.0
"""The GPT family (also Llama and similar models): one stack of layers with causal attention."""

from __future__ import annotations

from nemo_launcher.families.family import Family
from nemo_launcher.families.gpt import generation, layouts, packing, prompts, row_packing
from nemo_launcher.families.gpt.forward import hidden_before, run_gpt
from nemo_launcher.families.gpt.hf_decoder import DECODERS
from nemo_launcher.families.gpt.hf_layouts import LAYOUTS, source_layout
from nemo_launcher.families.gpt.model import FrozenGPT, build_gpt
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.hidden import HiddenStates
from nemo_launcher.families.layer_shape import is_gated
from nemo_launcher.families.stacks import Stack


def gpt_stacks(model: FrozenGPT, shape: GPTShape) -> list[Stack]:
    """Return the single stack of a GPT. Source of the path: NeMo 1.20, MegatronGPTBaseAdapterModel.state_dict."""
    return [Stack("decoder", "model.language_model.encoder.layers", model.decoder.layers, shape)]


GPT = Family(
    name="gpt",
    title="GPT",
    model_class=FrozenGPT,
    owns_adapter=lambda keys: True,  # only T5 adapters have keys that name a stack
    renaming=lambda config: layouts.from_stored_name,
    is_gated=is_gated,
    embedding="embedding.word_embeddings.weight",
    read_shape=GPTShape.from_config,
    build=build_gpt,
    stacks=gpt_stacks,
    stack_shapes=lambda shape: {"decoder": shape},
    prompt_encoder=prompts.make_encoder,
    nemo_length=lambda decoder_seq_length: None,
    text=lambda tokenizer, ids: tokenizer.ids_to_text(ids),
    joint="",
    pack=packing.pack,
    make_sample=lambda prompt, answer: GPTSample(prompt + answer, len(prompt), {}, ""),
    shares_prefixes=True,
    run=run_gpt,
    pack_rows=row_packing.pack_rows,
    run_row=run_gpt,
    hidden=HiddenStates(
        stack="decoder",
        is_causal=True,
        owners=packing.PackedBatch.owners,
        compute=hidden_before,
        attach=packing.PackedBatch.with_hidden,
    ),
    start_decoding=generation.GPTDecoding,
    layouts=LAYOUTS,
    source_layout=source_layout,
    hugging_face=DECODERS,
)
