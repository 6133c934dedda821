# SPDX-License-Identifier: Apache-2.0
"""HTML elements whose text is always escaped.

`element` is the only maker of `Html`. Whatever is not `Html` is text from a file: characters that HTML reads as markup,
control characters, lone surrogates and marks that change the direction of writing become visible text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

MAX_TEXT = 600
"""Maximum number of characters of one text from the data."""

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
)
_VOID = ("input", "meta")  # of those that reports use; elements of SVG have end tags
_NAME = re.compile(r"[a-zA-Z][\w:-]*")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: object, **attributes: object) -> Html:
    """Return `<name attributes>children</name>`.

    Children are Html, text, or None, which is left out. A trailing `_` of an attribute's name is removed and the other
    `_` become `-`; None and False leave an attribute out, and True gives it no value.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        assert _NAME.fullmatch(label), label
        parts.append(label if value is True else f'{label}="{escaped(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Html:
    """Return Html children as they are and all others escaped, one after the other."""
    return Html("".join(c if isinstance(c, Html) else escaped(str(c)) for c in children if c is not None))


def escaped(text: str) -> Html:
    """Return text as HTML; what cannot be seen is shown as an escape such as \\x00 or \\u202e."""
    return Html(html.escape(_UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)))


def quoted(text: object, limit: int = MAX_TEXT) -> Html:
    """Return text from the data of at most `limit` characters in an element that isolates its direction."""
    whole = str(text)
    cut = len(whole) > limit
    rest = element("span", f" … ({len(whole):,} characters)", class_="note") if cut else None
    return joined([element("bdi", whole[:limit], class_="text"), rest])


def table(
    head: Iterable[object], rows: Iterable[Iterable[object]], *, caption: str, classes: Iterable[str] = ()
) -> Html:
    """Return a table in a region that scrolls by itself. The first cell of a row is its header.

    classes: a class for each row; none for rows without one.
    """
    named = iter(classes)
    body = [
        element(
            "tr",
            *(element("td", cell) if place else element("th", cell, scope="row") for place, cell in enumerate(cells)),
            class_=next(named, None),
        )
        for cells in rows
    ]
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head)))
    whole = element("table", element("caption", caption), top, element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, object]], *, caption: str) -> Html:
    """Return a table of names and values without those that are None."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in pairs
        if value is not None
    ]
    whole = element("table", element("caption", caption), element("tbody", *rows))
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def section(title: str, *children: object) -> Html:
    """Return a section with a heading."""
    return element("section", element("h2", title), *children)


def folded(title: str, *children: object) -> Html:
    """Return content that is shown on request."""
    return element("details", element("summary", title), *children)
