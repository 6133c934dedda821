# SPDX-License-Identifier: Apache-2.0
"""Match stored tensors to the weights of the architecture, one to one, or fail and name the differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher.checkpoint.architectures.architecture import Experts
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES
from nemo_launcher.checkpoint.hf_folder import HARMLESS
from nemo_launcher.checkpoint.stored_tensor import some_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.hf_classes import model_class, num_experts
from nemo_launcher.files.foreign import reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Shapes = Mapping[str, tuple[int, ...]]
_HEAD = "lm_head.weight"
_PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "base_model.", "model.", "transformer.")
"""Prefixes that wrappers add to all names: DistributedDataParallel, torch.compile, PEFT, custom modules."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of an architecture's weights."""

    stored: dict[str, str]
    """Maps each weight of the architecture to its name in the files."""
    tied: dict[str, str]
    """Maps each tied weight to the name of the weight that it must equal."""

    def check_tied(self, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Raise UserError when weights that the configuration ties are stored with different values."""
        problems = []
        for name, other in self.tied.items():
            if self.stored[name] != self.stored[other] and not torch.equal(tensors[name], tensors[other]):
                where = f"{source}: {self.stored[name]}"
                what = f"differs from {self.stored[other]}, but config.json ties them (tie_word_embeddings)"
                fix = f'set "tie_word_embeddings" to false in config.json, or remove {self.stored[name]}'
                problems.append(Problem(where, what, fix))
        if problems:
            raise UserError(problems)


def match_names(config: PretrainedConfig, architecture: str, shapes: Shapes, source: Path) -> Names:
    """Find each weight of the architecture among the stored tensors. shapes: those of the stored tensors by name.

    Raises UserError for weights that are absent, superfluous or of a different shape.
    """
    wanted, tied = _architecture(config, architecture, source)
    stored = _renamed(shapes, wanted, source)
    for pair in ARCHITECTURES[architecture].other_names.items():
        for name, other in (pair, pair[::-1]):
            if name in wanted.keys() - stored.keys() and other in stored.keys() - wanted.keys():
                stored[name] = stored.pop(other)
    if not getattr(config, "scale_decoder_outputs", True):  # T5 v1.1: the head has its own weights
        tied.pop(_HEAD, None)
    for name, other in tied.items():  # either one of two tied weights is sufficient
        if other not in stored and name in stored:
            stored[other] = stored[name]
    for name, other in tied.items():
        if name not in stored and other in stored:
            stored[name] = stored[other]
    problems = _differences(wanted, stored, shapes, architecture, source)
    if problems:
        raise UserError(problems)
    if config.is_encoder_decoder:
        tied.pop(_HEAD, None)  # transformers decides by comparing the values
    return Names({name: stored[name] for name in wanted}, tied)


def _architecture(
    config: PretrainedConfig, architecture: str, source: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes of an architecture's weights and its tied weights, without allocating memory."""
    with reading(source, "correct config.json, or copy it again"), torch.device("meta"):
        model = model_class(architecture, str(source))(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    experts = ARCHITECTURES[architecture].experts
    return shapes if experts is None else _of_files(shapes, experts, num_experts(config)), _tied(model)


def _of_files(shapes: Shapes, experts: Experts, count: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in files, where each expert has matrices of its own."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = experts.stored_names(name, count)
        if len(parts) > 1:
            rows = shape[1] // len(parts[0])
            found |= {part: (rows, *shape[2:]) for several in parts for part in several}
        else:
            found[parts[0][0]] = shape
    return found


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Return the tied weights: {name: first name of the same weight}."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    names = [(name, first.setdefault(id(weight), name)) for name, weight in named]
    return {name: other for name, other in names if name != other}


def _renamed(shapes: Shapes, wanted: Shapes, source: Path) -> dict[str, str]:
    """Return {architecture's name: stored name}, ignoring a prefix that all stored names share."""
    names = [name for name in shapes if not HARMLESS.fullmatch(name)]
    best, change = max(_candidates(names, wanted), key=lambda candidate: len(wanted.keys() & candidate[0].keys()))
    if change:
        print(f"{source}: all tensor names {change}", flush=True)
    return best


def _candidates(names: list[str], wanted: Shapes) -> Iterator[tuple[dict[str, str], str]]:
    """Yield ({changed name: stored name}, description of the change); the unchanged names come first."""
    bases = {name.partition(".")[0] + "." for name in wanted if name != _HEAD}
    current, removed = {name: name for name in names}, ""
    for _ in range(4):
        change = f"start with {removed!r}, which is removed" if removed else ""
        yield current, change
        if len(bases) == 1 and not any(name.startswith(tuple(bases)) for name in current):
            base = next(iter(bases))
            added = {name if name == _HEAD else base + name: stored for name, stored in current.items()}
            yield added, f"lack {base!r}, which is added" + (f"; {change}" if change else "")
        prefix = next((p for p in _PREFIXES if current and all(name.startswith(p) for name in current)), None)
        if prefix is None:
            return
        removed += prefix
        current = {name.removeprefix(prefix): stored for name, stored in current.items()}


def _differences(
    wanted: Shapes, stored: Mapping[str, str], shapes: Shapes, architecture: str, source: Path
) -> list[Problem]:
    problems = []
    absent = wanted.keys() - stored.keys()
    if absent:
        what = f"{len(absent)} of {len(wanted)} weights of {architecture} are missing: {some_of(absent)}"
        problems.append(Problem(str(source), what, "use a complete copy of the model"))
    superfluous = {name for key, name in stored.items() if key not in wanted}
    if superfluous:
        what = f"{len(superfluous)} tensors do not belong to {architecture}: {some_of(superfluous)}"
        fix = 'correct "architectures" and the sizes in config.json, or use the model that the weights belong to'
        problems.append(Problem(str(source), what, fix))
    other = {name for name in wanted.keys() & stored.keys() if shapes[stored[name]] != wanted[name]}
    if other:
        first = sorted(other)[0]
        sizes = f"{first} has shape {shapes[stored[first]]}, config.json gives {wanted[first]}"
        what = f"{len(other)} weights have different shapes than in config.json: {some_of(other)}; {sizes}"
        problems.append(Problem(str(source), what, "correct the sizes in config.json, or copy it again"))
    return problems
