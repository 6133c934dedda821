# SPDX-License-Identifier: Apache-2.0
"""All documents: links, configuration keys, verbs and options exist, and the site builds without a warning."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nemo_launcher.cli import _VERBS, parse
from nemo_launcher.errors import UserError
from nemo_launcher.launcher.suggestions import GROUPS, known_keys
from tests.documents import LINES, PATHS, REPOSITORY, TEXTS, name_of, words_in_backticks

pytestmark = pytest.mark.unit

TAILS = {".".join(key.split(".")[i:]) for key in [*GROUPS, *known_keys()] for i in range(key.count(".") + 1)}
"""Every key of the configuration and its ends, such as `optim.lr` for `adapter_learning.model.optim.lr`."""
FIRST = {key.partition(".")[0] for key in TAILS}
NOT_KEYS = {"trust_remote_code"}
"""Arguments of a library that look like a key and its value."""


def unknown_keys(words: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the overrides and dotted keys, with their documents, that the configuration does not have."""
    found = []
    for name, word in words:
        dotted = re.fullmatch(r"'?[+~]*([a-z_]\w*(?:\.[a-z_]\w*)+)(?:=.*|: .*)?", word)
        override = re.fullmatch(r"'?[+~]*([a-z_][\w.]*)=.*", word)
        is_lost = dotted is not None and dotted[1].partition(".")[0] in FIRST and dotted[1] not in TAILS
        if is_lost or (override is not None and override[1] not in TAILS | NOT_KEYS):
            found.append((name, word))
    return found


def is_understood(command: str) -> bool:
    """Return whether a verb and its options exist; a sentence may leave out what the verb requires."""
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    try:
        parse(words)
    except SystemExit as done:  # --help
        return done.code == 0
    except UserError as error:
        return "no such" not in str(error)
    return True


def anchors(text: str) -> set[str]:
    """Return the anchors that code hosts give to the headings."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").strip().lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for path in PATHS:
        for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", TEXTS[name_of(path)]):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                wrong.append((name_of(path), link))
    assert wrong == []


def test_every_key_exists() -> None:
    """Keys in the text, and overrides in blocks that continue a command."""
    in_code = [("code", word) for line in LINES if re.match(r"'?[\w.+]+=", line) for word in shlex.split(line)]
    assert len(in_code) > 3
    assert unknown_keys([*words_in_backticks(), *in_code]) == []


def test_an_unknown_key_is_found() -> None:
    wrong = [("a", "model.optim.learning_rate"), ("a", "+lerning_rate=3"), ("a", "'cluster.volume=[{a: b}]'")]
    right = [("a", "optim.lr=1e-3"), ("a", "model_config.yaml"), ("a", "~cluster.partition")]
    assert unknown_keys([*wrong, *right]) == wrong


def test_every_verb_and_option_in_the_text_exists() -> None:
    named = {word for _, word in words_in_backticks() if word.startswith("nemo-launcher ")}
    assert named
    assert [command for command in sorted(named) if not is_understood(command)] == []


def test_an_unknown_verb_or_option_is_found() -> None:
    assert not is_understood("nemo-launcher statuses")
    assert not is_understood("nemo-launcher generate --bass FILE")
    assert is_understood("nemo-launcher generate --base FILE")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict, as in `make lint`; and no page loads anything from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert len(pages) > 10
    loaded = [
        (name, tag)
        for name, text in pages.items()
        for tag in re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", text)
        if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)
    ]
    assert loaded == []


def messages_of_the_source() -> set[str]:
    """Return every text in the package's code; of an f-string, each part between its values."""
    return {
        node.value
        for path in (REPOSITORY / "nemo_launcher").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def absent_messages(titles: Iterable[str], texts: Iterable[str]) -> list[str]:
    """Return the titles with a part that no text contains; `...` stands for what a message names."""
    parts = {title: [part.strip() for part in title.split("...") if part.strip()] for title in titles}
    whole = "\n".join(texts)
    return [title for title, wanted in parts.items() if not wanted or any(part not in whole for part in wanted)]


def test_each_message_of_the_troubleshooting_guide_is_in_the_code() -> None:
    titles = re.findall(r"^### (.+)$", TEXTS["docs/troubleshooting.md"], flags=re.MULTILINE)
    assert len(titles) >= 25
    assert absent_messages(titles, messages_of_the_source()) == []


def test_a_message_that_the_code_no_longer_has_is_found() -> None:
    assert absent_messages(["has no wings", "is ..., but late"], ["has no ", "wings", "is ", ", but late"]) == [
        "has no wings"
    ]


def test_figures_of_the_concepts_are_those_of_the_benchmarks() -> None:
    """Each row's figures stand together in a row of a measured table."""
    table = TEXTS["docs/concepts.md"].partition("<!-- figures -->")[2].partition("<!-- /figures -->")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.]+) \|$", table, flags=re.MULTILINE)
    assert len(rows) == 3
    for name, step, memory in rows:
        measured = rf"^\|.*\| {step} \|.*\| {re.escape(memory)} \|$"
        assert re.search(measured, TEXTS["benchmarks/README.md"], flags=re.MULTILINE), name


def test_f1_of_the_concepts_is_that_of_the_readme() -> None:
    f1 = {
        name: float(value)
        for name, value in re.findall(r"\| base \+ (\w+) \| [\d.]+% \| ([\d.]+)%", TEXTS["README.md"])
    }
    (points,) = re.findall(r"its F1 is (\d+) points above that of IA3", TEXTS["docs/concepts.md"])
    assert round(f1["adapter"] - f1["IA3"]) == int(points)


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docs/images/*.svg")), ids=lambda path: path.name)
def test_a_drawing_is_complete_in_itself(path: Path) -> None:
    """It has a title and a description, a background of its own for dark pages, and loads nothing."""
    root = ElementTree.parse(path).getroot()
    tags = [element.tag.rpartition("}")[2] for element in root]
    assert {"title", "desc"} <= {*tags}
    assert root.get("role") == "img"
    assert tags.index("rect") < tags.index("path")
    assert "href" not in path.read_text(encoding="utf-8")


def unknown_scripts(text: str) -> list[str]:
    """Return the scripts, modules and options of `python ...` commands that do not exist."""
    found = []
    for program, rest in re.findall(r"\bpython3? (benchmarks/\w+\.py|-m tests(?:\.\w+)+)([^`|]*)", text):
        path = REPOSITORY / (program if "/" in program else program[3:].replace(".", "/") + ".py")
        beside = "\n".join(each.read_text(encoding="utf-8") for each in path.parent.glob("*.py"))
        options = re.findall(r"(?<=\s)--[a-z][\w-]*", rest.partition("\n\n")[0])
        found += [f"{program} {option}" for option in options if f'"{option}"' not in beside]
        found += [] if path.is_file() else [program]
    return found


def test_scripts_and_their_options_exist() -> None:
    assert unknown_scripts("`python benchmarks/nowhere.py`, `python -m tests.reliability.kills --conut 3`") == [
        "benchmarks/nowhere.py",
        "-m tests.reliability.kills --conut",
    ]
    assert {name: found for name, text in TEXTS.items() if (found := unknown_scripts(text))} == {}


def test_every_verb_is_shown_in_a_guide() -> None:
    shown = {words[1] for line in LINES if len(words := line.split()) > 1 and words[0] == "nemo-launcher"}
    assert {"launch", *_VERBS} <= shown
