# SPDX-License-Identifier: Apache-2.0
"""What is added to a parsed Jinja template so that its work is counted (jinja_limits).

A loop, a macro and a call count the size of their bodies, and comparisons, tests and slices that of their values.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

TURNS, TEXT, COUNTED, COMPARED, TICK = "turns of a loop", "text of parts", "counted value", "compared value", "a turn"
"""Filters that no template can name."""
_NODES_PER_STEP = 64
_COMPARING = (
    *("==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan", ">=", "ge"),
    *("in", "lower", "upper"),
)
"""Tests that read all of a value."""


def with_counting(tree: nodes.Template) -> nodes.Template:
    """Return a template that counts its work."""
    found: nodes.Template = _Counting().visit(tree)
    return found


def _filtered(node: nodes.Expr, name: str, *more: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(more), [], None, None, lineno=node.lineno)


class _Counting(NodeTransformer):
    """Adds the filters; Jinja calls a method for each kind of node."""

    def visit_For(self, node: Any) -> Any:
        self._with_tick(node)
        node.iter = _filtered(node.iter, TURNS)
        return node

    def visit_Macro(self, node: Any) -> Any:
        return self._with_tick(node)

    def visit_CallBlock(self, node: Any) -> Any:
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_filtered(node.nodes[0], TEXT, *node.nodes[1:])]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, COMPARED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, COMPARED)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:
        self.generic_visit(node)
        if node.name in _COMPARING:
            node.node = _filtered(node.node, COMPARED)
            node.args = [_filtered(argument, COMPARED) for argument in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, COUNTED) if isinstance(node.arg, nodes.Slice) else node

    def _with_tick(self, node: Any) -> Any:
        steps = sum(1 for statement in node.body for _ in statement.find_all(nodes.Node)) // _NODES_PER_STEP
        self.generic_visit(node)
        tick = _filtered(nodes.Const(steps, lineno=node.lineno), TICK)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node
