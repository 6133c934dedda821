# SPDX-License-Identifier: Apache-2.0
"""Texts for comparing two tokenizers: scripts, digits, spaces, line ends, characters outside the first plane."""

# ruff: noqa: RUF001

from __future__ import annotations

TEXTS = (
    "Where was the canal opened in 1869? It's 12,345.67 metres long, isn't it?",
    "question: 2023 is 202 and 3; 1 12 123 1234 12345 0.001 1e-5 3/4 100%",
    " a leading space, two  of them, three   of them, and trailing ones  ",
    "line\nnext\n\nparagraph\r\nwindows\ttab\t\tend\n",
    "Żaneta wohnt in Köln-Mülheim, façade naïve œuvre, ½ ² ™ … “quotes” – dash",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดี",
    "北京と東京は首都です。서울도 수도입니다。１２３",
    "emoji 😀👩‍👩‍👧🇪🇺 and 𝕞𝕒𝕥𝕙 and e\u0301 combining",
    "def f(x):\n    return {'a': [x**2, -1], \"b\": None}  # <tag/> & \\n",
    "CamelCase snake_case SHOUTING http://example.org/a?b=c&d=%20 user@host don't we'll I'VE",
    "",
    " ",
    "a",
)
