# SPDX-License-Identifier: Apache-2.0
"""The model families: one row each, naming everything that differs between them.

What is not in this table is the same for all: archives, adapter methods, training, evaluation and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nemo_launcher.checkpoint.outline import is_t5
from nemo_launcher.data import prompt_encoder, t5_prompts
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation import generation
from nemo_launcher.families.gpt import generation as gpt_generation
from nemo_launcher.families.gpt import layouts as gpt_layouts
from nemo_launcher.families.gpt import packing
from nemo_launcher.families.gpt.model import FrozenGPT, build_gpt
from nemo_launcher.families.gpt.shape import GPTShape, is_gated
from nemo_launcher.families.stacks import Stack, gpt_stacks, is_t5_key, t5_stacks
from nemo_launcher.families.t5 import generation as t5_generation
from nemo_launcher.families.t5 import layouts as t5_layouts
from nemo_launcher.families.t5 import packing as t5_packing
from nemo_launcher.families.t5.model import FrozenT5, build_t5
from nemo_launcher.families.t5.shape import T5Shape
from nemo_launcher.families.t5.shape import is_gated as t5_is_gated
from nemo_launcher.training import forward

if TYPE_CHECKING:
    from nemo_launcher.data.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family.

    name, title: for configurations and for messages. model_class: of its frozen model.
    owns: does a checkpoint with this configuration belong to the family? renaming: what gives a stored weight our name
    (checkpoint.sharding.StoredWeights). is_gated: is the first feed-forward matrix [gate | up]? embedding: our name of
    the token embedding. read_shape: the shape from configuration, rows of the embedding and archive name. build: the
    model from its shape. stacks: the stacks of layers that adapters go into; stack_shapes: their shapes by name.
    prompt_encoder: what turns records into samples. inference: the `inference` section that counts, from those of the
    job and the adapter's configuration. text: of prompt or prediction, special tokens left out; joint: what stands
    between prompt and prediction in the documented predictions file.
    pack: samples of a micro-batch as one batch; shares_prefixes: does it lay common prefixes out once? run: the
    logits of a batch's labels. start_decoding: the state in which samples are generated.
    """

    name: str
    title: str
    model_class: type[nn.Module]
    owns: Callable[[Mapping[str, Any]], bool]
    renaming: Callable[[Mapping[str, Any]], Callable[[str], str | None]]
    is_gated: Callable[[Mapping[str, Any]], bool]
    embedding: str
    read_shape: Callable[..., Any]
    build: Callable[..., Any]
    stacks: Callable[[Any, Any], list[Stack]]
    stack_shapes: Callable[[Any], Mapping[str, Any]]
    prompt_encoder: Callable[..., Any]
    inference: Callable[[Mapping[str, Any], Mapping[str, Any], bool], Mapping[str, Any]]
    text: Callable[[Tokenizer, Sequence[int]], str]
    joint: str
    pack: Callable[..., Any]
    shares_prefixes: bool
    run: Callable[[Any, Any], Tensor]
    start_decoding: Callable[..., generation.Decoding]


GPT = Family(
    name="gpt",
    title="GPT",
    model_class=FrozenGPT,
    owns=lambda config: not is_t5(config),
    renaming=lambda config: gpt_layouts.from_stored_name,
    is_gated=is_gated,
    embedding="embedding.word_embeddings.weight",
    read_shape=GPTShape.from_config,
    build=build_gpt,
    stacks=gpt_stacks,
    stack_shapes=lambda shape: {"decoder": shape},
    prompt_encoder=prompt_encoder.from_config,
    inference=lambda inference, adapter_config, nemo_compat: inference,
    text=lambda tokenizer, ids: tokenizer.ids_to_text(ids),
    joint="",
    pack=packing.pack,
    shares_prefixes=True,
    run=forward.run_gpt,
    start_decoding=gpt_generation.GPTDecoding,
)
T5 = Family(
    name="t5",
    title="T5",
    model_class=FrozenT5,
    owns=is_t5,
    renaming=t5_layouts.renaming,
    is_gated=t5_is_gated,
    embedding="encoder_embedding.word_embeddings.weight",
    read_shape=T5Shape.from_config,
    build=build_t5,
    stacks=t5_stacks,
    stack_shapes=lambda shape: {"encoder": shape.encoder, "decoder": shape.decoder},
    prompt_encoder=t5_prompts.from_config,
    inference=t5_generation.inference_section,
    text=t5_prompts.plain_text,
    joint=" ",
    pack=t5_packing.pack,
    shares_prefixes=False,
    run=forward.run_t5,
    start_decoding=t5_generation.T5Decoding,
)

# The first part of the launcher's config choices ("t5/squad") -> family.
FAMILIES: dict[str, Family] = {"gpt3": GPT, "llama": GPT, "t5": T5}


def family_of_checkpoint(config: Mapping[str, Any]) -> Family:
    """Return the family of the base checkpoint with this configuration."""
    return next(family for family in (GPT, T5) if family.owns(config))


def family_of_adapter(keys: Iterable[str]) -> Family:
    """Return the family that an adapter with these keys in its state dict belongs to."""
    return T5 if any(map(is_t5_key, keys)) else GPT


def family_of_model(model: nn.Module) -> Family:
    """Return the family of a frozen model."""
    return next(family for family in (GPT, T5) if isinstance(model, family.model_class))


def check_family(found: Family, expected: str | None, source: str) -> None:
    """Raise UserError unless `found` is the family that a stage expects (a key of FAMILIES, None: any)."""
    if expected is None:
        return
    if expected not in FAMILIES:
        what = f"no model family is called {expected!r}"
        raise UserError(Problem("run.model_family", what, did_you_mean(expected, FAMILIES)))
    wanted = FAMILIES[expected]
    if found is not wanted:
        what = f"is a {found.title} checkpoint, but the stage is one for {wanted.title} ({expected})"
        fix = f"name a {wanted.title} base, or choose the stage's {found.title} configuration"
        raise UserError(Problem(source, what, fix))
