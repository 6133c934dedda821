# SPDX-License-Identifier: Apache-2.0
"""Compare a written base model with its source: token ids, every layer, and the logits.

One layer of each is in memory at a time. Both sides compute in float32 with the stored values of the base model,
so a difference is an error and not rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from nemo_launcher.checkpoint.architectures.registry import KINDS
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.conversion.one_layer import SourceModel, WrittenModel
from nemo_launcher.conversion.probe import TEXTS
from nemo_launcher.conversion.source import Source
from nemo_launcher.conversion.source_tokenizer import SourceTokenizer
from nemo_launcher.data.tokenizers import Tokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.t5.attention import BlockPlan
from nemo_launcher.files.foreign import quiet_panics, reading, reading_each
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.sizes import ONE_RANK

NUM_TOKENS = 24
TOLERANCE = 5e-5
"""Relative tolerance of a layer's update; float32 sums in a different order differ by about 1e-6."""
_FLOOR = 4e-6
"""Tolerance relative to a layer's output, for its rounding in float32 when the update is comparatively small."""
_HEAD_VALUES = 1 << 24
"""The most values of a head's weight that are in memory at a time."""
_FOLDED = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
"""Additional tolerance of T5's logits, since the factor folded into the final norm is rounded to the stored type."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Agreement:
    """The differences between a base model and its source."""

    layers: float
    """The largest relative difference of a layer's update."""
    logits: float
    """The largest relative difference of the logits."""


def compare(path: Path, target: Path, source: Source, tokenizer: SourceTokenizer, dtype: torch.dtype) -> Agreement:
    """Compare the archive at `path`, which will be renamed to `target`, with its source.

    dtype: that of its weights. Raises UserError for the first text, layer or logits that differ.
    """
    parallel.initialize(ONE_RANK)
    with Archive(path) as archive, torch.no_grad():
        compare_tokens(load_tokenizer(archive), tokenizer, target)
        ours = WrittenModel(archive)
        theirs = SourceModel(source, dtype)
        is_t5 = hasattr(ours.shape, "encoder")
        steps = _t5(ours, theirs) if is_t5 else _gpt(ours, theirs)
        largest = logits = 0.0
        for where, before, wanted, found in reading_each(steps, source.path, "correct config.json, or copy it again"):
            is_head = before is None
            scale = wanted.norm() if before is None else (wanted - before).norm()
            difference = float((found - wanted).norm() / scale.clamp_min(1e-30))
            bound = TOLERANCE + _FLOOR * float(wanted.norm() / scale.clamp_min(1e-30))
            bound += _FOLDED[dtype] if is_head and is_t5 else 0.0
            if not difference <= bound:
                what = f"{where}: differs from the source by {difference:.1e}, above the tolerance of {bound:.1e}"
                raise UserError(Problem(str(target), what, "nothing is written; report it with the model's name"))
            largest, logits = (largest, difference) if is_head else (max(largest, difference), logits)
    return Agreement(largest, logits)


def compare_tokens(ours: Tokenizer, theirs: SourceTokenizer, target: Path) -> None:
    """Raise UserError for the first text whose ids differ from the source's."""
    for text in (*TEXTS, theirs.marks):
        with reading(f"{target}: tokenizer", "copy the tokenizer's files of the source again"), quiet_panics():
            wanted, found = theirs.encode(text), ours.text_to_ids(text)
        if wanted != found:
            first = next((n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), len(found))
            what = f"the text {text[:40]!r} gets different token ids than in the source, from token {first + 1} on"
            raise UserError(Problem(f"{target}: tokenizer", what, "put tokenizer.json of the model into the folder"))
    for name, number in theirs.special.items():
        if getattr(ours, f"{name}_id") != number:
            what = f"the {name} token has id {getattr(ours, f'{name}_id')}, but {number} in the source"
            raise UserError(Problem(f"{target}: tokenizer", what, "set it in the source's tokenizer_config.json"))


Step = tuple[str, Tensor | None, Tensor, Tensor]
"""(name, input of a residual layer or None, output of the source, output of the base model)."""


def _gpt(ours: WrittenModel, theirs: SourceModel) -> Iterator[Step]:
    shape, model = ours.shape, ours.model
    assert isinstance(shape, GPTShape)
    rows = theirs.config.vocab_size
    length = min(NUM_TOKENS, shape.encoder_seq_length, shape.max_position_embeddings)
    tokens = _use_tokens(ours, theirs, length)
    positions = torch.arange(length)[None]
    positions[:, length // 2 :] += min(shape.encoder_seq_length, shape.max_position_embeddings) - length  # far apart
    plan = AttentionPlan([Group(0, (length,))])
    model.place(plan, positions)
    modules = KINDS[theirs.source.kind].weights
    prefix = modules["decoder.layers.*.self_attention.linear_proj"].names[0].partition(".*.")[0]
    options = {"position_ids": positions, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    hidden = _input_of(theirs.use_layer(prefix, 0), lambda: theirs.model.base_model(input_ids=tokens, **options))
    yield "the embedding", torch.zeros_like(hidden), hidden, model.embed(tokens, positions).transpose(0, 1)
    if "embedding.position_embeddings" in modules:  # the hidden states already include it
        table = theirs.model.get_submodule(modules["embedding.position_embeddings"].names[0])
        table.weight = nn.Parameter(torch.zeros_like(table.weight))
    if "embedding.word_embeddings_layernorm" in modules:  # they are normalized already
        owner, _, name = modules["embedding.word_embeddings_layernorm"].names[0].rpartition(".")
        setattr(theirs.model.get_submodule(owner), name, nn.Identity())
    num_layers = shape.num_layers
    ones = torch.ones_like(hidden)  # some models scale given embeddings too
    scale = _input_of(theirs.use_layer(prefix, 0), lambda: theirs.model.base_model(inputs_embeds=ones, **options))

    for number in range(num_layers):
        layer, own = theirs.use_layer(prefix, number), ours.use_layer("decoder", number)
        before, run = hidden, theirs.model.base_model
        hidden, _ = _output_of(layer, lambda: run(inputs_embeds=before / scale, **options))  # noqa: B023
        found = own(before.transpose(0, 1).contiguous(), attention_mask=plan)[0].transpose(0, 1)
        yield f"layer {number + 1} of {num_layers}", before, hidden, found
    normed = model.decoder.final_layernorm(hidden.transpose(0, 1).contiguous())

    def logits(part: slice) -> tuple[Tensor, Tensor]:
        wanted = theirs.model(inputs_embeds=before / scale, **options).logits
        return wanted, model.scaled_logits(model.output_layer(normed, weight=ours.head_rows(part))[0].transpose(0, 1))

    yield _head_step(theirs, rows, logits)


def _use_tokens(ours: WrittenModel, theirs: SourceModel, count: int) -> Tensor:
    """Keep `count` rows of both embeddings, from the first to the last; return the ids of these tokens, [1, n]."""
    ids = torch.linspace(0, theirs.config.vocab_size - 1, count).long()
    ours.use_tokens(ids)
    theirs.use_tokens(ids)
    return torch.arange(count)[None]


def _head_step(theirs: SourceModel, rows: int, logits: Callable[[slice], tuple[Tensor, Tensor]]) -> Step:
    """Return the step of the logits, which are computed for some rows of the head at a time."""
    wanted, found = [], []
    size = max(_HEAD_VALUES // theirs.model.get_output_embeddings().in_features, 1)
    for first in range(0, rows, size):
        part = slice(first, min(first + size, rows))
        theirs.use_head(part)
        one, other = logits(part)
        wanted.append(one)
        found.append(other)
    return "the logits", None, torch.cat(wanted, -1), torch.cat(found, -1)


def _t5(ours: WrittenModel, theirs: SourceModel) -> Iterator[Step]:
    original, rows = theirs.model, theirs.config.vocab_size
    ids = _use_tokens(ours, theirs, NUM_TOKENS)
    answer = ids[:, ::2].flip(1)
    encoder, decoder = original.encoder, original.decoder
    encoded = yield from _t5_stack(ours, theirs, "encoder", ids, None, lambda hidden: encoder(inputs_embeds=hidden))
    normed = ours.model.encoder.final_layernorm(encoded.transpose(0, 1).contiguous()).transpose(0, 1)
    encoded = encoder.final_layer_norm(encoded)
    yield "the encoder's output", torch.zeros_like(encoded), encoded, normed

    def run(hidden: Tensor) -> object:
        return decoder(inputs_embeds=hidden, encoder_hidden_states=encoded, use_cache=False)

    hidden = yield from _t5_stack(ours, theirs, "decoder", answer, encoded, run)
    wanted = decoder.final_layer_norm(hidden)
    if theirs.config.scale_decoder_outputs:
        wanted = wanted * theirs.config.d_model**-0.5
    normed = ours.model.decoder.final_layernorm(hidden.transpose(0, 1).contiguous())

    def logits(part: slice) -> tuple[Tensor, Tensor]:
        found = ours.model.output_layer(normed, weight=ours.head_rows(part))[0].transpose(0, 1)
        return original.lm_head(wanted), found

    yield _head_step(theirs, rows, logits)


def _t5_stack(
    ours: WrittenModel,
    theirs: SourceModel,
    stack: str,
    ids: Tensor,
    encoded: Tensor | None,
    run: Callable[[Tensor], object],
) -> Generator[Step, None, Tensor]:
    """Compare the layers of a stack; return the last output. encoded: the encoder's output, for the decoder."""
    model, lengths = ours.model, [ids.size(1)]
    bias = getattr(model, f"{stack}_bias")(ids.size(1))
    plan = BlockPlan(lengths, lengths, causal=stack == "decoder", bias=bias)
    options: dict[str, object] = {"attention_mask": plan}
    if encoded is not None:
        options["context"] = encoded.transpose(0, 1).contiguous()
        options["context_mask"] = BlockPlan(lengths, [encoded.size(1)])
    hidden: Tensor = theirs.model.shared(ids)
    mine = getattr(model, f"{stack}_embedding")(ids, torch.arange(ids.size(1))[None]).transpose(0, 1)
    yield f"the {stack}'s embedding", torch.zeros_like(hidden), hidden, mine
    num_layers = getattr(ours.shape, stack).num_layers
    for number in range(num_layers):
        layer, own = theirs.use_layer(f"{stack}.block", number), ours.use_layer(stack, number)
        wanted, _ = _output_of(layer, lambda: run(hidden))  # noqa: B023 (called at once)
        found = own(hidden.transpose(0, 1).contiguous(), **options)[0].transpose(0, 1)
        yield f"{stack} layer {number + 1} of {num_layers}", hidden, wanted, found
        hidden = wanted
    return hidden


def _input_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the hidden states that a layer receives while `run` executes."""
    captured: list[Tensor] = []

    def keep(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        captured.append(positional[0] if positional else named["hidden_states"])

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    run()
    handle.remove()
    return captured[0]


def _output_of(layer: nn.Module, run: Callable[[], T]) -> tuple[Tensor, T]:
    """Return the hidden states that a layer outputs, and the result of `run`."""
    captured: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda _, __, output: captured.append(output if torch.is_tensor(output) else output[0])
    )
    result = run()
    handle.remove()
    return captured[0], result
