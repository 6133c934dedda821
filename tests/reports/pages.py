# SPDX-License-Identifier: Apache-2.0
"""A report as a browser without JavaScript and a screen reader see it: headings, tables, elements, visible text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "input"}


class Page(HTMLParser):
    """The structure of a page. Raises AssertionError for elements that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.levels: list[int] = []
        self.facts: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.visible = ""
        self._parts: list[str] = []
        self._row: list[str] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    @classmethod
    def read(cls, path: Path) -> Page:
        """Return the page in a file."""
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3", "caption", "th", "td"):
            self._parts = []
        if tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag
        text = " ".join("".join(self._parts).split())
        if tag in ("h1", "h2", "h3"):
            self.headings.append(text)
            self.levels.append(int(tag[1]))
        elif tag == "caption":
            self._caption = text
            self.tables[text] = []
        elif tag in ("th", "td"):
            self._row.append(text)
        elif tag == "tr" and "thead" not in self.open:
            self.tables[self._caption].append(self._row)
            if len(self._row) == 2:
                self.facts[self._row[0]] = self._row[1]

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self.open}:
            self.visible += data
            self._parts.append(data)
