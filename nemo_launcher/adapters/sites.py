# SPDX-License-Identifier: Apache-2.0
"""The sites in a transformer layer where an adapter can act, with their widths. Imports no torch.

Sources: NeMo 1.20 megatron/transformer.py, attention.py, mlp.py; NeMo 1.23 megatron/adapters/mcore_mixins.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from nemo_launcher.megatron.sizes import LayerSizes


@dataclass(frozen=True, slots=True)
class Width:
    """The last dimension of the activations at a site."""

    of: Callable[[LayerSizes], int]
    """Its size in the complete model."""
    is_split: bool = True
    """Whether each tensor-parallel rank has a part of it."""
    has_gate: bool = False
    """Whether a gated feed-forward has [gate | up] here, of which a rank has a part each."""


HIDDEN = Width(lambda sizes: sizes.hidden_size, is_split=False)
HEADS = Width(lambda sizes: sizes.num_attention_heads * sizes.kv_channels)
KEYS = Width(lambda sizes: sizes.num_query_groups * sizes.kv_channels)
KEYS_AND_VALUES = Width(lambda sizes: 2 * sizes.num_query_groups * sizes.kv_channels)
QKV = Width(lambda sizes: (sizes.num_attention_heads + 2 * sizes.num_query_groups) * sizes.kv_channels)
FFN = Width(lambda sizes: sizes.ffn_hidden_size)
FFN_IN = Width(lambda sizes: (2 if sizes.gated else 1) * sizes.ffn_hidden_size, has_gate=True)


class Action(enum.Enum):
    """How an adapter's result is applied."""

    ADD = enum.auto()
    """`adapter(x)` is added to x, the output of a sub-layer."""
    REPLACE = enum.auto()
    """`adapter(x)` replaces x."""
    BESIDE = enum.auto()
    """`adapter(x, output)` is added to the output of a projection of x."""
    PREFIX = enum.auto()
    """`adapter()` returns additional keys and values that every token attends to."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The properties of a site."""

    action: Action
    """How the adapter's result is applied."""
    owner: str
    """The submodule of the layer that holds the adapter; "" for the layer itself."""
    target: str
    """The submodule or tensor of the layer that the adapter acts on."""
    takes: Width
    """The width of the adapter's input."""
    gives: Width
    """The width of the adapter's result."""


def _place(action: Action, owner: str, target: str, takes: Width, gives: Width | None = None) -> _Place:
    return _Place(action, owner, target, takes, takes if gives is None else gives)


class Site(enum.Enum):
    """A site in a transformer layer.

    Output sites are before the projection's bias and the residual are added; keys and values are before rotary
    positions and the cache. Tensors are [s, b, width]. Under sequence parallelism a rank has only its part of the
    tokens at the inputs of linear_qkv and linear_fc1 and at outputs of the hidden size. Only T5 decoders have
    cross-attention.
    """

    ATTENTION_OUTPUT = _place(Action.ADD, "", "self_attention.linear_proj", HIDDEN)
    CROSS_OUTPUT = _place(Action.ADD, "", "cross_attention.linear_proj", HIDDEN)
    MLP_OUTPUT = _place(Action.ADD, "", "mlp.linear_fc2", HIDDEN)
    KEY = _place(Action.REPLACE, "self_attention", "key", KEYS)
    VALUE = _place(Action.REPLACE, "self_attention", "value", KEYS)
    CROSS_KEY = _place(Action.REPLACE, "cross_attention", "key", KEYS)
    CROSS_VALUE = _place(Action.REPLACE, "cross_attention", "value", KEYS)
    MLP_ACTIVATION = _place(Action.REPLACE, "mlp", "activation", FFN)
    LINEAR_QKV = _place(Action.BESIDE, "self_attention", "self_attention.linear_qkv", HIDDEN, QKV)
    LINEAR_PROJ = _place(Action.BESIDE, "self_attention", "self_attention.linear_proj", HEADS, HIDDEN)
    CROSS_LINEAR_Q = _place(Action.BESIDE, "cross_attention", "cross_attention.linear_q", HIDDEN, HEADS)
    CROSS_LINEAR_KV = _place(Action.BESIDE, "cross_attention", "cross_attention.linear_kv", HIDDEN, KEYS_AND_VALUES)
    CROSS_LINEAR_PROJ = _place(Action.BESIDE, "cross_attention", "cross_attention.linear_proj", HEADS, HIDDEN)
    LINEAR_FC1 = _place(Action.BESIDE, "mlp", "mlp.linear_fc1", HIDDEN, FFN_IN)
    LINEAR_FC2 = _place(Action.BESIDE, "mlp", "mlp.linear_fc2", FFN, HIDDEN)
    KEY_VALUE_PREFIX = _place(Action.PREFIX, "self_attention", "self_attention.core_attention", KEYS)
    CROSS_KEY_VALUE_PREFIX = _place(Action.PREFIX, "cross_attention", "cross_attention.core_attention", KEYS)

    @property
    def action(self) -> Action:
        """How the adapter's result is applied."""
        return self.value.action

    @property
    def module_path(self) -> str:
        """The submodule of a layer that holds adapters of this site; "" for the layer itself."""
        return self.value.owner

    @property
    def nemo_path(self) -> str:
        """NeMo's name of this submodule."""
        return self.module_path.replace("cross_attention", "inter_attention")

    @property
    def target(self) -> str:
        """The submodule or tensor of the layer that the adapter acts on."""
        return self.value.target

    @property
    def takes(self) -> Width:
        """The width of the adapter's input; for a prefix, of its keys and its values each."""
        return self.value.takes

    @property
    def gives(self) -> Width:
        """The width of the adapter's result."""
        return self.value.gives

    @property
    def is_cross(self) -> bool:
        """Whether only layers with cross-attention have this site."""
        return "cross_attention" in (self.module_path, self.target.partition(".")[0])


INSIDE_FEED_FORWARD = frozenset((Site.MLP_ACTIVATION, Site.LINEAR_FC1, Site.LINEAR_FC2))
"""The sites that layers with experts lack."""


def absent_sites(*, has_cross_attention: bool, has_experts: bool) -> frozenset[Site]:
    """Return the sites that a layer lacks."""
    cross = frozenset[Site]() if has_cross_attention else frozenset(site for site in Site if site.is_cross)
    return cross | INSIDE_FEED_FORWARD if has_experts else cross
