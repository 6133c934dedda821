# SPDX-License-Identifier: Apache-2.0
"""Loading a frozen base model with its tokenizer from a `.nemo` archive."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from nemo_launcher.families.registry import check_family, family_of_checkpoint
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.packed_weight import use_packed_weights
from nemo_launcher.megatron.sizes import ONE_RANK, ParallelSizes
from nemo_launcher.runtime.agreement import check_same
from nemo_launcher.runtime.memory import limit_allocator_caches

BASE_KEY = "language_model_path"


@dataclass(slots=True)
class Base:
    """A frozen base model, ready to run on `device`."""

    model: Any
    """The family's model."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    shape: Any
    """The family's shape."""
    config: dict[str, object]
    """The archive's configuration."""
    device: torch.device
    """Where it runs."""
    family: AnyFamily
    """Its family."""
    fingerprint: str
    """Of its weights and settings (checkpoint.fingerprint)."""
    settings: Settings
    """The settings that the fingerprint covers."""
    sums: dict[str, int]
    """The sum of each weight's bits, by name (checkpoint.fingerprint)."""
    dtype: torch.dtype
    """The type of weights and activations."""
    num_parameters: int
    """Of the whole model, on all ranks."""
    files: WatchedFiles
    """The files that the weights are mapped from."""

    @property
    def checksum(self) -> str:
        """A checksum over every number of the weights (checkpoint.fingerprint)."""
        return checksum(self.sums)

    def changed_in_use(self) -> bool:
        """Return whether the files were overwritten with other numbers since the base was loaded."""
        if not self.files.written_to():
            return False
        try:
            changed = _stored_sums(self.files.path, list(self.sums)) != self.sums
        except UserError:
            return True
        self.files.look()  # they have another date alone
        return changed


def load_base(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: ParallelSizes = ONE_RANK,
    family: str | None = None,
) -> Base:
    """Load this rank's part of a base `.nemo`, whatever sizes and layout (NeMo's legacy or mcore) it was written in.

    family: the one that is expected, a key of families.FAMILIES; None: any. Raises UserError when the archive is
    unreadable, of another family, or its weights do not fit its configuration.
    """
    device = parallel.initialize(sizes)
    if device.type == "cpu":
        limit_allocator_caches(dtype)
    else:  # it makes a plan for each length that it has not seen: 0.1 s each on an H100 (benchmarks/README.md)
        torch.backends.cuda.enable_cudnn_sdp(False)
    source, files = str(path), WatchedFiles(path)
    with Archive(path) as archive:
        config = archive.config()
        if is_adapter(config):
            trained_in = config.get("language_model_path") or config.get("restore_from_path")
            raise UserError(Problem(source, "is an adapter, not a base model", f"it was trained in {trained_in}"))
        found = family_of_checkpoint(config)
        check_family(found, family, source)
        tokenizer = load_tokenizer(archive)
        weights = StoredWeights(archive, found.renaming(config), gated=found.is_gated(config))
        if found.embedding not in weights.names:
            raise UserError(Problem(source, f"holds no word embeddings: it is not a {found.title} base checkpoint"))
        shape = found.read_shape(config, vocab_size=weights.rows(found.embedding), source=source)
        _check_tokenizer(tokenizer, shape.vocab_size, source)
        problems = size_mismatches(weights, found.stack_shapes(shape), shape, source)
        if problems:
            raise UserError(problems[:10])
        settings = settings_of(shape, config)
        mark = fingerprint(weights, settings)
        check_same(lambda: {BASE_KEY: mark})  # before the ranks put together what each has read
        model = found.build(shape, dtype=dtype, sizes=sizes)
        assignment = _Assignment(found, model, shape, weights, config, source, _num_tokens(tokenizer))
        count = assignment.run(dtype)
    sums = assignment.sums
    check_same(lambda: {BASE_KEY: checksum(sums), f"{BASE_KEY}: tokenizer": str(tokenizer.identity)})
    model = model.to(device)
    use_packed_weights(model)
    return Base(model, tokenizer, shape, config, device, found, mark, settings, sums, dtype, count, files)


def _stored_sums(path: Path, names: list[str]) -> dict[str, int]:
    """Return the sums of the weights of these names as they are in an archive now."""
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
    """Return a weight without the rows that pad an embedding."""
    return weight[: max(0, tokens)] if name.endswith(PADDED) else weight


def _num_tokens(tokenizer: Tokenizer) -> int:
    """Return how many rows of an embedding a tokenizer needs."""
    return max(tokenizer.vocab_size, highest_id(tokenizer) + 1)


def _check_tokenizer(tokenizer: Tokenizer, rows: int, source: str) -> None:
    """Raise UserError for a tokenizer with ids that the embedding has no rows for."""
    tokens = _num_tokens(tokenizer)
    if tokens > rows:
        what = f"the tokenizer has {tokens} tokens, the embedding {rows} rows"
        raise UserError(Problem(source, what, "the tokenizer belongs to another model"))


_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.*)")


@dataclass(slots=True)
class _Assignment:
    """Gives a model its weights; it takes over what is read, so that they exist once in memory."""

    family: AnyFamily
    """The model's family."""
    model: Any
    """The model."""
    shape: Any
    """The family's shape."""
    weights: StoredWeights
    """The stored weights."""
    config: dict[str, object]
    """The archive's configuration."""
    source: str
    """The archive's name, for messages."""
    tokens: int
    """Rows of the embedding that stand for tokens; Megatron adds others."""
    sums: dict[str, int] = field(default_factory=dict)
    """The sum of each weight's bits in the whole model, by name."""

    def run(self, dtype: torch.dtype) -> int:
        """Read and assign this rank's weights; return how many numbers the whole model holds.

        Raises UserError with what is absent, superfluous or of another shape. All ranks must call it.
        """
        own = {name: (self._whole_name(name), parameter) for name, parameter in self.model.named_parameters()}
        all_names = set(parallel.merge_stages(dict.fromkeys(whole for whole, _ in own.values())))
        problems = self._superfluous(all_names)
        state: dict[str, Tensor] = {}
        for name, (whole, parameter) in own.items():
            self.sums[whole] = 0
            if whole not in self.weights.names:
                problems.append(Problem(f"{self.source}: {whole}", "is absent from the weights"))
                continue
            weight = self.weights.read(whole, parallel.tensor_rank(), parallel.tensor_size())
            if weight.shape != parameter.shape:
                what = f"has shape {tuple(weight.shape)}, the configuration {tuple(parameter.shape)}"
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
        self._merge_sums()  # also where this rank alone has found something: the others wait for it
        if problems:
            raise UserError(problems[:10])
        self.model.load_state_dict(state, strict=False, assign=True)
        self.model.requires_grad_(False)
        return self.weights.num_parameters(all_names)

    def _sum(self, weight: Tensor, name: str) -> int:
        """Return this rank's part of a weight's sum; what all tensor-parallel ranks have counts on the first."""
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
        found = not_finite(weight, where, "copy or convert it again; a base whose training diverged cannot be used")
        if found:
            return found
        largest = float(weight.abs().max())
        what = f"holds {largest:.3g}, which is beyond the numbers of {str(dtype).removeprefix('torch.')}"
        fits = largest <= torch.finfo(torch.bfloat16).max
        return [Problem(where, what, "use precision bf16 or 32" if fits else "copy or convert it again")]

    def _whole_name(self, name: str) -> str:
        """Return a parameter's name in the whole model: layers counted from its first, shared ones by one name."""
        name = self.model.names_in_checkpoint.get(name, name)
        match = _LAYER.fullmatch(name)
        if match is None:
            return name
        layer = getattr(self.model, match[1]).layers[int(match[2])]
        return f"{match[1]}.layers.{layer.layer_number - 1}.{match[3]}"

    def _superfluous(self, own: set[str]) -> list[Problem]:
        """Stored weights that the configuration's model would not have; `own`: the whole names of all stages'."""
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
                found.append(Problem(f"{self.source}: {name}", "has no place in the model its configuration describes"))
        return found
