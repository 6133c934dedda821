# SPDX-License-Identifier: Apache-2.0
"""Private names of Jinja that the package uses."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


@leans_on("nemo_launcher/data/jinja_text.py", "_parse")
def test_each_compiled_template_goes_through_parse() -> None:
    """Loops and concatenations are found in its tree, and what replaces them is compiled."""

    class Environment(ImmutableSandboxedEnvironment):
        def _parse(self, *source: Any) -> nodes.Template:
            tree = super()._parse(*source)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(loop.iter, "reverse", [], [], None, None, lineno=loop.lineno)
            for text in tree.find_all(nodes.Concat):
                text.nodes = [nodes.Filter(text.nodes[0], "upper", [], [], None, None, lineno=text.lineno)]
            return tree

    template = Environment().from_string("{% for x in 'ab' %}{{ x ~ '!' }}{% endfor %}")
    assert template.render() == "BA"


@leans_on("nemo_launcher/data/jinja_limits.py", "_Namespace__attrs")
def test_a_namespace_keeps_its_values_in_a_mapping() -> None:
    assert Namespace(x=1)._Namespace__attrs == {"x": 1}
    assert type(Namespace()).__name__ == "Namespace"
