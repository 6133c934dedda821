# SPDX-License-Identifier: Apache-2.0
"""Write a key and a value for the command line: in Hydra's grammar, then quoted for the shell."""

from __future__ import annotations

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_/.][\w./@%+-]*", re.ASCII)
_WORDS = ("null", "true", "false", "nan", "inf")


def override(key: str, value: object) -> str:
    """Return `key=value` quoted for a shell."""
    written = f"{key}={hydra_value(value)}"
    if not re.search(r"[^\w@%+=:,./-]", written, re.ASCII):
        return written
    return f"'{written}'" if "'" not in written else shlex.quote(written)


def hydra_value(value: object) -> str:
    """Return a value in Hydra's grammar; text with special characters is put in double quotes."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {hydra_value(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str) or (_PLAIN.fullmatch(value) and value.lower() not in _WORDS):
        return str(value)
    return quoted(value)


def quoted(text: str) -> str:
    """Return text in double quotes for Hydra, with `${` escaped."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return '"' + re.sub(r"(?<!\\)\$\{", r"\\${", escaped) + '"'
