# SPDX-License-Identifier: Apache-2.0
"""Writer of the tables in docs/from-nemo-launcher.md, key by key: `make docs-reference`.

NVIDIA's keys and what is better here are in nvidia_keys.txt; keys without effect, renamed keys and other stages are
those of the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.config.ignored import IGNORED, SIZE_COPIES, SIZES
from nemo_launcher.config.older_names import OLDER_NAMES
from nemo_launcher.config.overrides import hydra_value
from nemo_launcher.config.sections.learning import TaskTemplate
from nemo_launcher.config.without_effect import rows
from nemo_launcher.launcher.elsewhere import ELSEWHERE
from nemo_launcher.launcher.suggestions import known_keys

FOLDER = Path(__file__).resolve().parent
PAGE, KEYS = FOLDER.parent / "from-nemo-launcher.md", FOLDER / "nvidia_keys.txt"
STANDING, GONE = ("same", "better"), "gone"
Rows = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Group:
    """The keys of one table."""

    heading: str
    """The table's heading."""
    section: str
    """The section of the keys here, empty for the top level."""
    file: str
    """NVIDIA's file, below its folder `conf`."""
    keys: dict[str, tuple[str, str]]
    """key -> (same, better, gone or nothing; how or what instead)."""

    def full(self, key: str) -> str:
        """Return the full name of a key."""
        return f"{self.section}.{key}" if self.section else key


def main() -> None:
    """Replace the tables of the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(text: str) -> str:
    """Return the page with new tables between its markers."""
    parts = {
        "keys": "\n".join(f"### {g.heading}\n\nNVIDIA's `{g.file}`\n\n{_table(_key_rows(g))}" for g in groups()),
        "stages": _table([("stage of NVIDIA's", "what it does", "instead"), *_stage_rows()]),
        "renamed": _table([("stage", "older key", "current key"), *_renamed_rows()]),
        "without-effect": _table([("keys", "accepted", "any other value"), *rows()]),
    }
    for name, content in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + content + end + rest.partition(end)[2]
    return text


def groups() -> list[Group]:
    """Return the content of nvidia_keys.txt."""
    found: list[Group] = []
    for line in KEYS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading, section, file = (part.strip() for part in line.removeprefix("## ").split("|"))
            found.append(Group(heading, section, file, {}))
        elif line and not line.startswith("#"):
            key, verdict, how = (part.strip() for part in line.split("|"))
            found[-1].keys[key] = (verdict, how)
    return found


def _key_rows(group: Group) -> Iterator[tuple[str, str, str]]:
    yield "key", "here", "how"
    for key, (verdict, how) in group.keys.items():
        own = _of_code(group.full(key))
        if own is not None:
            if verdict:
                raise ValueError(
                    f"{KEYS}: {group.full(key)} is {own[0]} in the code's own tables: leave the rest empty"
                )
            verdict, how = own
        elif verdict not in (*STANDING, GONE) or (verdict != "same") != bool(how):
            raise ValueError(f"{KEYS}: {group.full(key)} is neither same, nor better or gone with a reason")
        elif (verdict in STANDING) != _exists(group.full(key)):
            raise ValueError(f"{KEYS}: {group.full(key)} is {verdict}, but that is not so in the schema")
        yield f"`{key}`", verdict, how


def _exists(key: str) -> bool:
    """Return whether the schema has a key."""
    template = "adapter_learning.model.task_templates."
    if key.startswith(template):
        return key.removeprefix(template) in {field.name for field in dataclasses.fields(TaskTemplate)}
    return key in ("stages", "cluster_type") or key in known_keys()


def _of_code(key: str) -> tuple[str, str] | None:
    """Return (what a key does here, how) if it is without effect or renamed; None for all others."""
    section, _, rest = key.partition(".")
    if rest in OLDER_NAMES.get(section, {}):
        return "renamed", f"`{OLDER_NAMES[section][rest]}`; the older name is taken over"
    if rest in SIZE_COPIES.get(section, ()):
        return "no effect", SIZES
    for entry in IGNORED:
        if section in entry.sections and rest in entry.keys:
            accepted = " or ".join(f"`{hydra_value(value)}`" for value in entry.documented)
            others = f"; only {accepted} is accepted" if entry.refused else ""
            return "no effect", f"{entry.reason}{others}"
    return None


def _stage_rows() -> Rows:
    return [(f"`{name}`", entry.title, entry.done_by) for name, entry in ELSEWHERE.items()]


def _renamed_rows() -> Rows:
    return [(f"`{s}`", f"`{a}`", f"`{b}`") for s, renamed in OLDER_NAMES.items() for a, b in renamed.items()]


def _table(lines: Iterator[tuple[str, ...]] | Rows) -> str:
    head, *others = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ("---",) * len(head), *others))


if __name__ == "__main__":
    main()
