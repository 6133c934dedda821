# SPDX-License-Identifier: Apache-2.0
"""A metric of the user's own is checked without running it, and whatever it does wrong is told with its name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.registry import find, name_problems

pytestmark = pytest.mark.unit

OWN_NAMES = {
    *("adapters/injection.py", "adapters/registry.py", "evaluation/metrics/registry.py", "entry.py", "__init__.py"),
    *("config/loggers.py", "data/preparation.py", "data/token_counts.py", "data/tokenizers.py", "runtime/deferred.py"),
}
"""Files that import modules by names from a table in the source or from a folder of the package."""
PACKAGE = Path(__file__).resolve().parents[2] / "nemo_launcher"
CODE = """
from pathlib import Path
Path({marker!r}).write_text("imported")
number = 3
def half(prediction, answers): return 0.5
def same(prediction, answers): return prediction in answers
def raises(prediction, answers): raise KeyError("lost")
def leaves(prediction, answers): raise SystemExit(3)
def text(prediction, answers): return "good"
def nothing(prediction, answers): pass
def big(prediction, answers): return 1.5
def nan(prediction, answers): return float("nan")
def huge(prediction, answers): return 10**5000
def changes(prediction, answers): answers.clear(); return 1.0
class Odd(Exception):
    def __str__(self): raise ValueError("no text")
    __repr__ = __str__
def odd(prediction, answers): raise Odd
def odd_value(prediction, answers): return Odd()
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make the working directory hold mine.py, which leaves this file when it is imported, and two broken modules."""
    marker = tmp_path / "imported"
    (tmp_path / "mine.py").write_text(CODE.format(marker=str(marker)))
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "failing.py").write_text("def f(p, a): return 1\nraise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield marker
    for name in ("mine", "failing"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine:", "is not module:function"),
        (":half", "is not module:function"),
        ("mine:half()", "is not module:function"),
        ("os.system('true'):x", "is not module:function"),
        ("absent_module:half", "no module 'absent_module'"),
        ("mine.inner:half", "no module 'mine.inner'"),
        ("mine:hal", "did you mean 'half'?"),
        ("broken:f", "invalid syntax"),
    ],
)
def test_wrong_names_are_told_without_running_the_module(marker: Path, name: str, words: str) -> None:
    (problem,) = name_problems([name], "evaluation.metrics")
    assert problem.where == "evaluation.metrics"
    assert words in str(problem)
    assert name_problems(["mine:half"], "evaluation.metrics") == []
    assert not marker.exists()


def test_its_mean_is_the_figure(marker: Path) -> None:
    questions = [Answered(prediction=" x ", answers=["y", "x"]), Answered(prediction="z", answers=["y"])]
    for name, expected in (("mine:half", 0.5), ("mine:same", 0.5)):
        metric = find([name])[0]
        assert metric.name == name
        assert metric.figure(metric.statistics(questions).sum(axis=0)) == expected


def test_it_cannot_change_the_right_answers(marker: Path) -> None:
    question = Answered(prediction="x", answers=["y", "x"])
    find(["mine:changes"])[0].statistics([question])
    assert question.answers == ["y", "x"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine:raises", "mine:raises('x', ['y']) raised KeyError: 'lost'"),
        ("mine:leaves", "raised SystemExit: 3"),
        ("mine:text", "returned 'good'"),
        ("mine:nothing", "returned None"),
        ("mine:big", "returned 1.5"),
        ("mine:nan", "returned nan"),
        ("mine:huge", "returned an object of type int"),
        ("mine:odd", "raised Odd"),
        ("mine:odd_value", "returned an object of type Odd"),
        ("mine:number", "mine:number is not a function"),
        ("failing:f", "importing failing raised RuntimeError: no licence"),
    ],
)
def test_what_it_does_wrong_is_told_with_its_name(marker: Path, name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        find([name])[0].statistics([Answered(prediction="x", answers=["y"])])
    assert words in str(error.value)
    assert len(error.value.problems) == 1


def test_it_is_the_only_code_that_a_configuration_names() -> None:
    """Modules are imported by a computed name only where the name is our own, and here."""
    importing = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in ("import_module", "__import__")
    }
    assert importing - OWN_NAMES == {"evaluation/metrics/own_code.py"}
