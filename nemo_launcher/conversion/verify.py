# SPDX-License-Identifier: Apache-2.0
"""Compare a written base model with its source: token ids, every layer, and the logits.

One layer of each is in memory at a time. Both sides compute in float32 with the stored values of the base model,
so a difference is an error and not rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.hf_architectures import architecture_of
from nemo_launcher.checkpoint.norms import norm_weight
from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.conversion.probe import TEXTS
from nemo_launcher.conversion.source import Source
from nemo_launcher.conversion.source_tokenizer import SourceTokenizer
from nemo_launcher.data.tokenizers import Tokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.gpt.model import vary
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.registry import family_of_checkpoint
from nemo_launcher.families.t5.attention import BlockPlan
from nemo_launcher.families.t5.layers import position_bias
from nemo_launcher.files.foreign import quiet_panics, reading
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.megatron.sizes import ONE_RANK

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NUM_TOKENS = 24
TOLERANCE = 5e-5
"""Relative tolerance of a layer's update; float32 sums in a different order differ by about 1e-6."""
_FLOOR = 4e-6
"""Tolerance relative to a layer's output, for its rounding in float32 when the update is comparatively small."""
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
        ours = _Written(archive)
        theirs = _Original(source, dtype)
        is_t5 = hasattr(ours.shape, "encoder")
        steps = _t5(ours, theirs) if is_t5 else _gpt(ours, theirs)
        largest = logits = 0.0
        for where, before, wanted, found in _with_user_errors(steps, source.path):
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


def _with_user_errors(steps: Iterator[Step], source: Path) -> Iterator[Step]:
    """Yield the steps; turn the exceptions of a model that cannot run with its configuration into UserErrors."""
    while True:
        with reading(source, "correct config.json, or copy it again"):
            step = next(steps, None)
        if step is None:
            return
        yield step


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


class _Written:
    """The written base model with a single layer per stack, whose weights are replaced."""

    def __init__(self, archive: Archive) -> None:
        self.config = archive.config()
        family = family_of_checkpoint(self.config)
        renaming, gated = family.renaming(self.config), family.is_gated(self.config)
        self.weights = StoredWeights(archive, renaming, gated=gated)
        rows = self.weights.rows(family.embedding)
        self.shape = family.read_shape(self.config, vocab_size=rows, source=str(archive.path))
        if hasattr(self.shape, "encoder"):
            stacks = {name: replace(getattr(self.shape, name), num_layers=1) for name in ("encoder", "decoder")}
            one_layer = replace(self.shape, **stacks)
        else:
            assert isinstance(self.shape, GPTShape)
            one_layer = replace(self.shape, num_layers=1, variation=self.shape.variation.of_layer(0))
        self.model = family.build(one_layer, dtype=torch.float32)
        self.parameters = [name for name, _ in self.model.named_parameters()]
        self._load({name: self._stored_name(name) for name in self.parameters if ".layers." not in name})

    def use_layer(self, stack: str, number: int) -> nn.Module:
        """Load the weights of layer `number` into the single layer of a stack; return it."""
        first = f"{stack}.layers.0."
        if isinstance(self.shape, GPTShape):
            vary(self.model.decoder.layers[0], self.shape, number)
        self._load(
            {name: name.replace(first, f"{stack}.layers.{number}.") for name in self.parameters if first in name}
        )
        layer: nn.Module = getattr(self.model, stack).layers[0]
        return layer

    def _stored_name(self, name: str) -> str:
        return str(self.model.names_in_checkpoint.get(name, name))

    def _load(self, names: Mapping[str, str]) -> None:
        state = {n: norm_weight(self.weights.read(stored), stored, self.config).float() for n, stored in names.items()}
        self.model.load_state_dict(state, strict=False, assign=True)


class _Original:
    """The source in transformers with a single layer per stack, whose weights are replaced."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        import transformers

        self.source, self._dtype = source, dtype
        self.config = copy.deepcopy(source.config)
        for key in ("num_hidden_layers", "num_decoder_layers"):
            if hasattr(self.config, key):
                setattr(self.config, key, 1)
        self.config._attn_implementation = "eager"
        self.config.quantization_config = None
        self._class = getattr(transformers, architecture_of(source.origin.config))
        self._kinds = {name: list(kinds) for name in _BY_LAYER if (kinds := getattr(source.config, name, None))}
        self._build(0)

    def _build(self, number: int) -> None:
        """Create the model whose single layer is of the kind of layer `number`."""
        self._kind = self._kind_of(number)
        for name, value in self._kind.items():
            setattr(self.config, name, [value])
        with torch.device("meta"):
            self.model = self._class(self.config).eval()
        for module in list(self.model.modules()):
            for name, child in list(module.named_children()):
                if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                    setattr(module, name, _with_buffers(child, self.config))
        self._all = list(self.model.state_dict())
        self._load({name: name for name in self._all if not _is_in_layer(name)})

    def _kind_of(self, number: int) -> dict[str, object]:
        return {name: kinds[number] for name, kinds in self._kinds.items()}

    def use_layer(self, prefix: str, number: int) -> nn.Module:
        """Load the weights of layer `number` into the single layer below `prefix`; return it."""
        if self._kind_of(number) != self._kind:
            self._build(number)
        first = f"{prefix}.0."
        names = {name: name.replace(first, f"{prefix}.{number}.", 1) for name in self._all if name.startswith(first)}
        self._load({name: theirs for name, theirs in names.items() if theirs in self.source.tensors})
        layer: nn.Module = self.model.get_submodule(f"{prefix}.0")
        return layer

    def _load(self, names: Mapping[str, str]) -> None:
        state = {name: self.source.tensors[theirs].to(self._dtype).float() for name, theirs in names.items()}
        self.model.load_state_dict(state, strict=False, assign=True)


_BY_LAYER = ("layer_types", "no_rope_layers")
"""Keys with an entry for each layer."""


def _with_buffers(module: nn.Module, config: PretrainedConfig) -> nn.Module:
    """Return a module whose buffers, which no file has, hold values: rotary frequencies, or Gemma's embedding scale."""
    scale: float | None = getattr(module, "scalar_embed_scale", None)
    if scale is not None:
        module.embed_scale = torch.tensor(scale)
        return module
    created: nn.Module = type(module)(config=config)
    return created


def _is_in_layer(name: str) -> bool:
    return any(f"{part}.0." in name for part in ("layers", "h", "block"))


Step = tuple[str, Tensor | None, Tensor, Tensor]
"""(name, input of a residual layer or None, output of the source, output of the base model)."""


def _gpt(ours: _Written, theirs: _Original) -> Iterator[Step]:
    shape, model = ours.shape, ours.model
    assert isinstance(shape, GPTShape)
    rows = theirs.config.vocab_size
    length = min(NUM_TOKENS, shape.encoder_seq_length, shape.max_position_embeddings)
    ids = torch.linspace(0, rows - 1, length).long()[None]
    positions = torch.arange(length)[None]
    positions[:, length // 2 :] += min(shape.encoder_seq_length, shape.max_position_embeddings) - length  # far apart
    plan = AttentionPlan([Group(0, (length,))])
    plan.rotations = model.rotations(positions)
    is_gpt2 = theirs.source.kind == "gpt2"
    prefix = "transformer.h" if is_gpt2 else "model.layers"
    options = {"position_ids": positions, "attention_mask": torch.ones_like(ids), "use_cache": False}
    hidden = _input_of(theirs.use_layer(prefix, 0), lambda: theirs.model(input_ids=ids, **options))
    yield "the embedding", torch.zeros_like(hidden), hidden, model.embed(ids, positions).transpose(0, 1)
    if is_gpt2:
        table = theirs.model.transformer.wpe
        table.weight = nn.Parameter(torch.zeros_like(table.weight))  # the hidden states already include it
    num_layers = shape.num_layers
    logits = None
    ones = torch.ones_like(hidden)  # some models scale given embeddings too
    scale = _input_of(theirs.use_layer(prefix, 0), lambda: theirs.model.base_model(inputs_embeds=ones, **options))

    for number in range(num_layers):
        layer, own = theirs.use_layer(prefix, number), ours.use_layer("decoder", number)
        last = number == num_layers - 1
        run = theirs.model if last else theirs.model.base_model
        wanted, result = _output_of(layer, lambda: run(inputs_embeds=hidden / scale, **options))  # noqa: B023
        found = own(hidden.transpose(0, 1).contiguous(), attention_mask=plan)[0].transpose(0, 1)
        yield f"layer {number + 1} of {num_layers}", hidden, wanted, found
        hidden, logits = wanted, result.logits if last else None
    normed = model.decoder.final_layernorm(hidden.transpose(0, 1).contiguous())
    weight = model.shared_embedding_or_output_weight() if shape.share_embeddings_and_output_weights else None
    assert logits is not None
    found = model.scaled_logits(model.output_layer(normed, weight=weight)[0].transpose(0, 1)[..., :rows])
    yield "the logits", None, logits, found


def _t5(ours: _Written, theirs: _Original) -> Iterator[Step]:
    original, rows = theirs.model, theirs.config.vocab_size
    ids = torch.linspace(0, rows - 1, NUM_TOKENS).long()[None]
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
    found = ours.model.logits_of(normed).transpose(0, 1)[..., :rows]
    yield "the logits", None, original.lm_head(wanted), found


def _t5_stack(
    ours: _Written,
    theirs: _Original,
    stack: str,
    ids: Tensor,
    encoded: Tensor | None,
    run: Callable[[Tensor], object],
) -> Generator[Step, None, Tensor]:
    """Compare the layers of a stack; return the last output. encoded: the encoder's output, for the decoder."""
    model, lengths, causal = ours.model, [ids.size(1)], stack == "decoder"
    positions = getattr(model, f"{stack}_relative_positions")
    plan = BlockPlan(lengths, lengths, causal=causal, bias=position_bias(positions, ids.size(1), causal=causal))
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
