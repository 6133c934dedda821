"""The model families: one row each, naming everything that differs between them.

What is not in this table is the same for all: archives, adapter methods, training, evaluation and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nemo_launcher.adapters.stacks import Stack, gpt_stacks, t5_stacks
from nemo_launcher.checkpoint import gpt_layouts, t5_layouts
from nemo_launcher.data import batching, prompt_encoder, t5_batching, t5_prompts
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.evaluation import generation, t5_generation
from nemo_launcher.models.config import GPTShape
from nemo_launcher.models.gpt import FrozenGPT, build_gpt
from nemo_launcher.models.t5 import FrozenT5, build_t5
from nemo_launcher.models.t5_config import T5Shape
from nemo_launcher.training import losses

if TYPE_CHECKING:
    from nemo_launcher.data.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family.

    name, title: for configurations and for messages. model_class: of its frozen model.
    owns: does a checkpoint (its configuration and the names of its weights) belong to the family?
    rename: stored weights under our names, with the stored names that are unknown. embedding: our name of the token
    embedding. read_shape: the shape from configuration, rows of the embedding and archive name. build: the model from
    its shape. stacks: the stacks of layers that adapters go into.
    prompt_encoder: what turns records into samples. inference: the `inference` section that counts, from those of the
    job and the adapter's configuration. text: of prompt or prediction, special tokens left out; joint: what stands
    between prompt and prediction in the documented predictions file.
    pack: samples of a micro-batch as one batch; shares_prefixes: does it lay common prefixes out once? token_losses:
    the cross-entropy of each label. start_decoding: begins the generation for a batch of samples.
    """

    name: str
    title: str
    model_class: type[nn.Module]
    owns: Callable[[Mapping[str, Any], Iterable[str]], bool]
    rename: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict[str, Tensor], list[str]]]
    embedding: str
    read_shape: Callable[..., Any]
    build: Callable[..., Any]
    stacks: Callable[[Any, Any], list[Stack]]
    prompt_encoder: Callable[..., Any]
    inference: Callable[[Mapping[str, Any], Mapping[str, Any], bool], Mapping[str, Any]]
    text: Callable[[Tokenizer, Sequence[int]], str]
    joint: str
    pack: Callable[..., Any]
    shares_prefixes: bool
    token_losses: Callable[[Any, Any], Tensor]
    start_decoding: Callable[..., generation.Decoding]


GPT = Family(
    name="gpt",
    title="GPT",
    model_class=FrozenGPT,
    owns=gpt_layouts.owns,
    rename=gpt_layouts.rename,
    embedding="embedding.word_embeddings.weight",
    read_shape=GPTShape.from_config,
    build=build_gpt,
    stacks=gpt_stacks,
    prompt_encoder=prompt_encoder.from_config,
    inference=lambda inference, adapter_config, nemo_compat: inference,
    text=lambda tokenizer, ids: tokenizer.ids_to_text(ids),
    joint="",
    pack=batching.pack,
    shares_prefixes=True,
    token_losses=losses.gpt_token_losses,
    start_decoding=generation.GPTDecoding,
)
T5 = Family(
    name="t5",
    title="T5",
    model_class=FrozenT5,
    owns=t5_layouts.owns,
    rename=t5_layouts.rename,
    embedding="encoder_embedding.word_embeddings.weight",
    read_shape=T5Shape.from_config,
    build=build_t5,
    stacks=t5_stacks,
    prompt_encoder=t5_prompts.from_config,
    inference=t5_generation.inference_section,
    text=t5_prompts.plain_text,
    joint=" ",
    pack=t5_batching.pack,
    shares_prefixes=False,
    token_losses=losses.t5_token_losses,
    start_decoding=t5_generation.T5Decoding,
)

# The first part of the launcher's config choices ("t5/squad") -> family.
FAMILIES: dict[str, Family] = {"gpt3": GPT, "llama": GPT, "t5": T5}


def family_of_checkpoint(config: Mapping[str, Any], names: Iterable[str], source: str) -> Family:
    """Return the family that a base checkpoint belongs to; UserError when it belongs to none."""
    names = list(names)
    for family in (T5, GPT):
        if family.owns(config, names):
            return family
    raise UserError(
        Problem(source, f"is neither a GPT nor a T5 base checkpoint: it holds {', '.join(sorted(names)[:3])} ...")
    )


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
