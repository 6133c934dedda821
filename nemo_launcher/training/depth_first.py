# SPDX-License-Identifier: Apache-2.0
"""Depth-first execution of a tree of rows: one path from the root to a leaf is in memory at a time.

A row runs forward once. The rows that continue it see its keys and values as inputs; the backward pass of each runs
right behind its forward pass, frees its activations, and adds to the sums of these inputs' gradients. When the last of
them is done, the row's own backward pass starts from these sums and from its own labels. So loss and gradients are
those of one packed row (megatron.attention), and the memory is that of one path with one gradient per key and value of
it, whatever the number of branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nemo_launcher.data.row_tree import RowForest, RowTree
from nemo_launcher.data.samples import Batch
from nemo_launcher.families.forward import run_row
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.megatron.attention_path import AttentionPath, KeyValues
from nemo_launcher.megatron.seeded_dropout import dropout_seed
from nemo_launcher.training.gradient_sums import GradientSums

LossOf = Callable[[Tensor, Batch], Tensor]


class _SharedRow:
    """Keys and values of a row that others continue, and the sums of their gradients.

    seen: what those rows take as inputs. inputs: the tensors among them that require gradients, in a fixed order, and
    outputs: the same tensors as the row has computed them.
    """

    def __init__(self, computed: KeyValues) -> None:
        self.seen: KeyValues = {}
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        for layer, pair in computed.items():
            key, value = (tensor.detach().requires_grad_(tensor.requires_grad) for tensor in pair)
            self.seen[layer] = key, value
            for given, tensor in zip((key, value), pair, strict=True):
                if given.requires_grad:
                    self.inputs.append(given)
                    self.outputs.append(tensor)
        # In bf16, rounding after each row would add up.
        self.sums = GradientSums(self.inputs, at_least=torch.float32)


class DepthFirst:
    """Runs the rows of one micro-batch.

    sums: where the gradients of the parameters are added; None to compute the loss only. seed: of the adapters'
    dropout; each row draws its own masks.
    """

    def __init__(self, model: FrozenModel, loss_of: LossOf, sums: GradientSums | None, seed: tuple[int, ...]) -> None:
        self.model, self.loss_of, self.sums, self.seed = model, loss_of, sums, seed
        self._rows = 0
        self._loss: Tensor | None = None

    def run(self, forest: RowForest) -> Tensor:
        """Return the micro-batch's share of the loss, [], without a graph."""
        for root in forest.roots:
            self._run(root, ())
        return torch.zeros(()) if self._loss is None else self._loss

    def _run(self, tree: RowTree, path: tuple[_SharedRow, ...]) -> None:
        keys_and_values = AttentionPath([row.seen for row in path])
        seed, self._rows = (*self.seed, self._rows), self._rows + 1
        with torch.set_grad_enabled(self.sums is not None), dropout_seed(seed):
            hidden = run_row(self.model, tree.row, keys_and_values)
            loss = self.loss_of(hidden, tree.row) if tree.row.labels.numel() else None
        if loss is not None:
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        shared = _SharedRow(keys_and_values.own if tree.children else {})
        del hidden, keys_and_values
        for child in tree.children:
            self._run(child, (*path, shared))
        if self.sums is not None:
            _backward(loss, shared, path, self.sums)


def _backward(
    loss: Tensor | None, shared: _SharedRow, path: Sequence[_SharedRow], parameter_sums: GradientSums
) -> None:
    """Run a row's backward pass: from its loss and from the gradients of its keys and values."""
    outputs: list[Tensor] = [] if loss is None else [loss]
    gradients: list[Tensor | None] = [None] * len(outputs)
    for tensor, total in zip(shared.outputs, shared.sums.totals, strict=True):
        if total is not None:
            outputs.append(tensor)
            gradients.append(total.to(tensor.dtype))
    if not outputs:
        return
    targets = [parameter_sums, *(row.sums for row in path)]
    inputs = [tensor for target in targets for tensor in target.inputs]
    found = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
    start = 0
    for target in targets:
        target.add(found[start : start + len(target.inputs)])
        start += len(target.inputs)
