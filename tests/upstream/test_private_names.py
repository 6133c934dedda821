# SPDX-License-Identifier: Apache-2.0
"""Every private name of another library that the package uses has a test in this folder, and no other name has."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.upstream.leaning import PACKAGE, ROOT, Use, covered, sources, uses_by_inheritance, uses_in_text

pytestmark = pytest.mark.unit

NOT_OTHERS = {
    Use("nemo_launcher/files/mapped.py", "_exit"): "os._exit is documented",
    Use("nemo_launcher/interrupts.py", "_exit"): "os._exit is documented",
}
"""Names with an underscore that no release of another library can change, with the reason."""
OPTIONAL = {"nemo_launcher/evaluation/harness_model.py": "lm_eval"}
"""Files that cannot be imported without a library that few installations have."""


def found() -> set[Use]:
    uses: set[Use] = set()
    for path in sources():
        file = path.relative_to(ROOT)
        uses |= uses_in_text(path.read_text(encoding="utf-8"), str(file))
        library = OPTIONAL.get(str(file))
        if file.parts[0] == PACKAGE and (library is None or find_spec(library)):
            uses |= uses_by_inheritance(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    return uses


def test_each_private_name_has_a_test_and_no_other_has() -> None:
    uses = found()
    assert sorted(uses - covered() - set(NOT_OTHERS)) == [], "write a test for these in tests/upstream (leans_on)"
    assert sorted(covered() - uses) == [], "nothing leans on these any more"
    assert sorted(set(NOT_OTHERS) - uses) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from hydra._internal.utils import x", "_internal"),
        ("from lightning.pytorch.loops.fit_loop import _FitLoop", "_FitLoop"),
        ("import torch._dynamo", "_dynamo"),
        ("def f(node):\n    return node._value()", "_value"),
        ("class A(B):\n    def f(self):\n        return super()._f()", "_f"),
        ("def f(x):\n    return getattr(x, '_value', None)", "_value"),
        ("import torch\ntorch.compile = None", "torch.compile ="),
        (
            "from megatron.core import parallel_state\nparallel_state.create_group = print",
            "parallel_state.create_group =",
        ),
    ],
)
def test_uses_that_are_found(text: str, name: str) -> None:
    assert uses_in_text(text, "a.py") == {Use("a.py", name)}


@pytest.mark.parametrize(
    "text",
    [
        "from __future__ import annotations",
        "from _typeshed import StrPath",
        "from nemo_launcher.data.cache import _key",
        "import sys\nsys.argv = []",
        "class A:\n    def f(self):\n        self._x = 1\n        return self._x.y",
        "def f(x):\n    x.y = x.__class__.__name__",
    ],
)
def test_uses_that_are_not_private(text: str) -> None:
    assert uses_in_text(text, "a.py") == set()


def test_what_a_class_shares_with_its_base_is_found() -> None:
    uses = uses_by_inheritance("nemo_launcher.megatron.frozen_linear")
    assert Use("nemo_launcher/megatron/frozen_linear.py", "_forward_impl") in uses


def test_no_object_changes_its_class() -> None:
    swaps = [path.name for path in sources() if "__class__ =" in path.read_text(encoding="utf-8")]
    assert not swaps
