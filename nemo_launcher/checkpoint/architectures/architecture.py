# SPDX-License-Identifier: Apache-2.0
"""The declaration of a Hugging Face architecture: its keys, and where its weights belong. Imports no torch."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nemo_launcher.files.values import Section

Settings = dict[str, object]


class Layout(enum.Enum):
    """How the tensors of an architecture form one of ours."""

    SAME = enum.auto()
    """One tensor, as it is."""
    WITHOUT_TWO_ROWS = enum.auto()
    """One table without its first two rows, which no text uses."""
    TRANSPOSED = enum.auto()
    """One matrix, [in, out] instead of [out, in]."""
    STACKED = enum.auto()
    """Several tensors, one after the other."""
    EACH_HEAD = enum.auto()
    """A tensor of each head, one after the other."""
    QKV = enum.auto()
    """Queries, keys and values, which ours has by group: [groups, heads / groups + 2, head_dim, hidden]."""
    QKV_ROWS = enum.auto()
    """The same, from one tensor with all queries, then all keys, then all values."""
    QKV_BY_GROUP = enum.auto()
    """The same, from one tensor that has them by group too."""
    QKV_COLUMNS = enum.auto()
    """From one tensor with all queries, keys and values in this order, transposed: [in, out]."""


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors that form one of ours, without their endings `.weight` and `.bias`."""

    names: tuple[str, ...]
    """Names in Hugging Face's files; * stands for the number of the layer, @ for that of the head or expert."""
    layout: Layout
    """How they form ours."""
    otherwise: Source | None = None
    """The source in a model without these tensors."""


Weights = dict[str, Source]
"""Our module -> the modules that it comes from; * stands for the number of the layer, @ for that of the expert."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: its names in files, and in transformers, which joins the experts' matrices."""

    module: str
    """The feed-forward of a layer in transformers; * stands for the number of the layer."""
    stored: str
    """The same in files."""
    gate: str
    """The matrix of an expert's gate in files."""
    up: str
    """Its up-projection."""
    down: str
    """Its down-projection."""

    @property
    def weights(self) -> Weights:
        """Where the weights of the router and the experts belong."""
        ours, expert = "decoder.layers.*.mlp.", f"{self.stored}.experts.@."
        return {
            f"{ours}router": same(f"{self.stored}.gate"),
            f"{ours}experts.local_experts.@.linear_fc1": Source(
                (f"{expert}{self.gate}", f"{expert}{self.up}"), Layout.STACKED
            ),
            f"{ours}experts.local_experts.@.linear_fc2": same(f"{expert}{self.down}"),
        }

    def stored_names(self, name: str, experts: int) -> list[list[str]]:
        """Return the names in files of a weight of transformers: for each part along the first axis, those it joins.

        name: with the number of the layer. experts: the number of experts.
        """
        before, _, after = self.module.partition("*")
        layer, _, rest = name.removeprefix(before).partition(".")
        owner = f".{rest}".partition(f"{after}.")[2] if name.startswith(before) and layer.isdecimal() else ""
        stored = self.stored.replace("*", layer)
        match owner:
            case "gate.weight":
                return [[f"{stored}.gate.weight"]]
            case "experts.gate_up_proj":
                parts = [[self.gate, self.up]] * experts
            case "experts.down_proj":
                parts = [[self.down]] * experts
            case _:
                return [[name]]
        return [[f"{stored}.experts.{n}.{part}.weight" for part in several] for n, several in enumerate(parts)]


def same(name: str, *others: str) -> Source:
    """Return a source that is one tensor, as it is; others: the names in models without the first."""
    return Source((name,), Layout.SAME, same(*others) if others else None)


_TANH_GELU: Settings = {"activation": "gelu", "openai_gelu": True}
ACTIVATIONS: dict[str, Settings] = {
    "gelu": {"activation": "gelu", "openai_gelu": False},
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "relu": {"activation": "relu"},
    "relu2": {"activation": "squared-relu"},
    "silu": {"activation": "silu"},
}
"""transformers' name of an activation without a gate -> settings of `model_config.yaml`."""


COMMON: Settings = {
    "mcore_gpt": True,
    "transformer_engine": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "ffn_dropout": 0.0,
    "bias_activation_fusion": False,
    "make_vocab_size_divisible_by": 128,
}
"""The keys of `model_config.yaml` that every decoder has; a base is frozen, so it has no dropout."""


def no_problems(config: Section) -> list[str]:
    """Return no unsupported settings."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A Hugging Face architecture."""

    name: str
    """Its name in `architectures` of config.json."""
    kind: str
    """Its `model_type`."""
    family: str
    """Its family, a key of config.families.FAMILIES."""
    counts: tuple[str, ...]
    """Required positive integers."""
    optional_counts: tuple[str, ...] = ()
    """Positive integers with a default in transformers."""
    numbers: tuple[str, ...] = ()
    """Positive numbers."""
    flags: tuple[str, ...] = ()
    """Keys that are true or false."""
    divisions: tuple[tuple[str, str], ...] = ()
    """Pairs of keys: the first value must be a multiple of the second."""
    others: tuple[str, ...] = ()
    """Further keys that `settings` or `problems` reads, or whose value does not change the model's results."""
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Keys with the values that are supported; a key may be absent."""
    problems: Callable[[Section], list[str]] = no_problems
    """Returns what is not supported of a configuration, as `key value`."""
    settings: Callable[[Section], Settings] | None = None
    """Returns the keys of `model_config.yaml` for a complete configuration; None: the family has code for it."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Names of weights in some versions of transformers -> their names in others and in files."""
    weights: Weights = field(default_factory=dict)
    """Where its weights belong."""
    experts: Experts | None = None
    """Its experts; None: it has one feed-forward."""

    @property
    def known(self) -> frozenset[str]:
        """All keys that this declaration accounts for."""
        names = (*self.counts, *self.optional_counts, *self.numbers, *self.flags, *self.others, *self.fixed)
        return frozenset(names)

    def names_in_files(self, names: Iterable[str], experts: int) -> set[str]:
        """Return the names in files of transformers' weights. experts: the number of experts."""
        if self.experts is None:
            return set(names)
        parts = (part for name in names for part in self.experts.stored_names(name, experts))
        return {name for several in parts for name in several}
