# SPDX-License-Identifier: Apache-2.0
"""Loading of a frozen base model and its tokenizer from a `.nemo` archive."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.fingerprint import Settings, checksum, fingerprint, settings_of, sum_of_bits
from nemo_launcher.checkpoint.finite import is_finite, not_finite
from nemo_launcher.checkpoint.norms import norm_weight
from nemo_launcher.checkpoint.outline import is_adapter
from nemo_launcher.checkpoint.sharding import PADDED, StoredWeights, split_dimension
from nemo_launcher.checkpoint.watch import WatchedFiles
from nemo_launcher.data.tokenizers import Tokenizer, highest_id, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.family import AnyFamily
from nemo_launcher.families.fit import size_mismatches
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.layer_shape import Shape
from nemo_launcher.families.registry import check_family, family_of_checkpoint
from nemo_launcher.files.mapped import release_pages
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.packed_weight import use_packed_weights
from nemo_launcher.megatron.sizes import ONE_RANK, ParallelSizes
from nemo_launcher.runtime.agreement import check_same
from nemo_launcher.runtime.gpu_memory import check_weights
from nemo_launcher.runtime.memory import limit_allocator_caches

BASE_KEY = "language_model_path"


@dataclass(slots=True)
class Base:
    """A frozen base model on its device."""

    model: FrozenModel
    """The family's model."""
    tokenizer: Tokenizer
    """The base's tokenizer."""
    shape: Shape
    """The family's shape."""
    config: dict[str, object]
    """The archive's configuration."""
    device: torch.device
    """The device of the weights."""
    family: AnyFamily
    """The base's family."""
    fingerprint: str
    """The fingerprint of its weights and settings (checkpoint.fingerprint)."""
    settings: Settings
    """The settings that the fingerprint covers."""
    sums: dict[str, int]
    """The sum of each weight's bits, by name (checkpoint.fingerprint)."""
    dtype: torch.dtype
    """The dtype of weights and activations."""
    num_parameters: int
    """The number of parameters of the complete model, over all ranks."""
    files: WatchedFiles
    """The files that the weights are mapped from."""

    @property
    def checksum(self) -> str:
        """A checksum over all values of the weights (checkpoint.fingerprint)."""
        return checksum(self.sums)

    def changed_in_use(self) -> bool:
        """Return whether the files were overwritten with other values since the base was loaded."""
        if not self.files.was_written_to():
            return False
        try:
            changed = stored_sums(self.files.path, list(self.sums)) != self.sums
        except UserError:
            return True
        self.files.look()  # only their modification times differ
        return changed


def load_base(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: ParallelSizes = ONE_RANK,
    family: str | None = None,
) -> Base:
    """Load this rank's part of a base `.nemo`, with any parallel sizes and layout (NeMo's legacy or mcore) in the file.

    family: the expected family, a key of families.FAMILIES; None for any. Raises UserError if the archive is unreadable
    or of another family, or if its weights do not match its configuration.
    """
    device = parallel.initialize(sizes)
    if device.type == "cpu":
        limit_allocator_caches(dtype)
    else:  # cuDNN builds a plan for each new length: 0.1 s each on an H100 (benchmarks/README.md)
        torch.backends.cuda.enable_cudnn_sdp(False)
    source, files = str(path), WatchedFiles(path)
    with Archive(path) as archive:
        described = describe_base(archive, family)
        found, config, shape = described.family, described.config, described.shape
        tokenizer, weights = described.tokenizer, described.weights
        problems = size_mismatches(weights, found.stack_shapes(shape), shape, source)
        if problems:
            raise UserError(problems[:10])
        settings = settings_of(shape, config)
        mark = fingerprint(weights, settings)
        check_same(lambda: {BASE_KEY: mark})  # before ranks combine what they have read
        model = found.build(shape, dtype=dtype, sizes=sizes)
        if device.type == "cuda":
            check_weights(sum(weight.numel() for weight in model.parameters()) * dtype.itemsize, source)
        assignment = _Assignment(found, model, shape, weights, config, source, _num_tokens(tokenizer))
        count = assignment.run(dtype)
    sums = assignment.sums
    check_same(lambda: {BASE_KEY: checksum(sums), f"{BASE_KEY}: tokenizer": str(tokenizer.identity)})
    model = model.to(device)
    use_packed_weights(model)
    return Base(model, tokenizer, shape, config, device, found, mark, settings, sums, dtype, count, files)


@dataclass(frozen=True, slots=True)
class DescribedBase:
    """What an open base archive says about its model, without the values of the weights."""

    family: AnyFamily
    """The base's family."""
    config: dict[str, object]
    """The archive's configuration."""
    shape: Shape
    """The family's shape."""
    tokenizer: Tokenizer
    """The base's tokenizer."""
    weights: StoredWeights
    """The stored weights."""


def describe_base(archive: Archive, family: str | None = None) -> DescribedBase:
    """Return the family, shape and tokenizer of a base; errors and `family` as in `load_base`."""
    config, source = archive.config(), str(archive.path)
    if is_adapter(config):
        trained_in = config.get("language_model_path") or config.get("restore_from_path")
        raise UserError(Problem(source, "is an adapter, not a base model", f"use its base: {trained_in}"))
    found = family_of_checkpoint(config)
    check_family(found, family, source)
    tokenizer = load_tokenizer(archive)
    weights = StoredWeights(archive, found.renaming(config), gated=found.is_gated(config))
    if found.embedding not in weights.names:
        raise UserError(Problem(source, f"holds no word embeddings: it is not a {found.title} base checkpoint"))
    shape = found.read_shape(config, vocab_size=weights.rows(found.embedding), source=source)
    _check_tokenizer(tokenizer, shape.vocab_size, source)
    return DescribedBase(found, config, shape, tokenizer, weights)


def stored_sums(path: Path, names: list[str]) -> dict[str, int]:
    """Return the present sums of these weights of a complete model in an archive (checkpoint.fingerprint)."""
    with Archive(path) as archive:
        config = archive.config()
        family, tokens = family_of_checkpoint(config), _num_tokens(load_tokenizer(archive))
        weights = StoredWeights(archive, family.renaming(config), gated=family.is_gated(config))
        absent = [Problem(f"{path}: {name}", "is absent from the weights") for name in set(names) - weights.names]
        if absent:
            raise UserError(absent)
        whole = {name: norm_weight(weights.read(name), name, config) for name in names}
        return {name: sum_of_bits(_rows_of(weight, name, tokens)) for name, weight in whole.items()}


def _rows_of(weight: Tensor, name: str, tokens: int) -> Tensor:
    """Return a weight without the padding rows of an embedding."""
    return weight[: max(0, tokens)] if name.endswith(PADDED) else weight


def _num_tokens(tokenizer: Tokenizer) -> int:
    """Return the number of embedding rows that a tokenizer needs."""
    return max(tokenizer.vocab_size, highest_id(tokenizer) + 1)


def _check_tokenizer(tokenizer: Tokenizer, rows: int, source: str) -> None:
    """Raise UserError if the tokenizer has ids beyond the embedding's rows."""
    tokens = _num_tokens(tokenizer)
    if tokens > rows:
        what = f"the tokenizer has {tokens} tokens, but the embedding has {rows} rows"
        raise UserError(Problem(source, what, "the tokenizer belongs to another model"))


_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.*)")


@dataclass(slots=True)
class _Assignment:
    """Assigns stored weights to a model without copying them."""

    family: AnyFamily
    """The model's family."""
    model: FrozenModel
    """The model."""
    shape: Shape
    """The family's shape."""
    weights: StoredWeights
    """The stored weights."""
    config: dict[str, object]
    """The archive's configuration."""
    source: str
    """The archive's name, for messages."""
    tokens: int
    """The number of embedding rows with a token; Megatron pads with more."""
    sums: dict[str, int] = field(default_factory=dict)
    """The sum of each weight's bits in the complete model, by name."""

    def run(self, dtype: torch.dtype) -> int:
        """Read and assign this rank's weights; return the number of parameters of the complete model.

        Raises UserError for weights that are missing, unexpected or of another shape. All ranks must call this.
        """
        own = {name: (self._whole_name(name), parameter) for name, parameter in self.model.named_parameters()}
        all_names = set(parallel.merge_stages(dict.fromkeys(whole for whole, _ in own.values())))
        problems = self._unexpected_weights(all_names)
        state: dict[str, Tensor] = {}
        for name, (whole, parameter) in own.items():
            self.sums[whole] = 0
            if whole not in self.weights.names:
                problems.append(Problem(f"{self.source}: {whole}", "is absent from the weights"))
                continue
            weight = self.weights.read(whole, parallel.tensor_rank(), parallel.tensor_size())
            if weight.shape != parameter.shape:
                what = f"has shape {tuple(weight.shape)}, but the configuration implies {tuple(parameter.shape)}"
                problems.append(Problem(f"{self.source}: {whole}", what))
                continue
            if not weight.is_floating_point():
                problems += not_finite(weight, f"{self.source}: {whole}", "")
                continue
            weight = norm_weight(weight, whole, self.config)
            self.sums[whole] = self._sum(weight, whole)
            state[name] = weight.to(dtype)
            if not is_finite(state[name]):
                problems += self._not_finite(weight, whole, dtype)
            release_pages(weight.data_ptr(), weight.nbytes)  # read for the sum; its use reads it again
        self._merge_sums()  # even if only this rank has found problems: the others wait in this call
        if problems:
            raise UserError(problems[:10])
        self.model.load_state_dict(state, strict=False, assign=True)
        self.model.requires_grad_(False)
        return self.weights.num_parameters(all_names)

    def _sum(self, weight: Tensor, name: str) -> int:
        """Return this rank's part of a weight's sum; tensor-parallel rank 0 counts replicated weights."""
        rank = parallel.tensor_rank()
        if split_dimension(name) is None:
            return sum_of_bits(weight) if rank == 0 else 0
        return sum_of_bits(_rows_of(weight, name, self.tokens - rank * weight.size(0)))

    def _merge_sums(self) -> None:
        names = list(self.sums)
        totals = parallel.sum_over_tensor_parts(torch.tensor(list(self.sums.values()), dtype=torch.int64))
        self.sums = parallel.merge_stages(dict(zip(names, totals.tolist(), strict=True)))

    def _not_finite(self, weight: Tensor, name: str, dtype: torch.dtype) -> list[Problem]:
        where = f"{self.source}: {name}"
        found = not_finite(weight, where, "copy or convert it again; if its training diverged, use another base")
        if found:
            return found
        largest = float(weight.abs().max())
        what = f"holds {largest:.3g}, which exceeds the range of {str(dtype).removeprefix('torch.')}"
        fits = largest <= torch.finfo(torch.bfloat16).max
        return [Problem(where, what, "use precision bf16 or 32" if fits else "copy or convert it again")]

    def _whole_name(self, name: str) -> str:
        """Return a parameter's name in the complete model, with global layer numbers and one name for tied weights."""
        name = self.model.names_in_checkpoint.get(name, name)
        match = _LAYER.fullmatch(name)
        if match is None:
            return name
        layer = getattr(self.model, match[1]).layers[int(match[2])]
        return f"{match[1]}.layers.{layer.layer_number - 1}.{match[3]}"

    def _unexpected_weights(self, own: set[str]) -> list[Problem]:
        """Return a Problem for each stored weight without a parameter; own: the names in the complete model."""
        in_layer = {match.group(1, 3) for match in map(_LAYER.fullmatch, own) if match}
        num_layers = {stack.name: stack.shape.num_layers for stack in self.family.stacks(self.model, self.shape)}
        outside = own | {"output_layer.weight"}  # the last stage of a tied model stores a copy of the embedding
        found = []
        for name in sorted(self.weights.names):
            match = _LAYER.fullmatch(name)
            if match is None:
                known = name in outside
            else:
                known = int(match[2]) < num_layers.get(match[1], 0) and match.group(1, 3) in in_layer
            if not known:
                found.append(Problem(f"{self.source}: {name}", "does not exist in the model of this configuration"))
        return found
