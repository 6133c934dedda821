# SPDX-License-Identifier: Apache-2.0
"""Recognise text that looks like an API key or token, which is never printed."""

from __future__ import annotations

import itertools
import re

HIDDEN = "***"
_FORMS = (
    r"wandb_v\d+_[\w-]{8,}",
    r"(?:sk|rk|pk|nvapi|glpat|pypi|xox[a-z])-[\w-]{16,}",
    r"(?:hf|npm|gh[a-z])_[A-Za-z0-9]{16,}",
    r"github_pat_\w{16,}",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"AIza[\w-]{30,}",
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    r"(?:local|api)-[0-9a-f]{32,}",
    r"[0-9a-fA-F]{40}",
)
KEY = re.compile(rf"(?<![\w-])(?:{'|'.join(_FORMS)})(?![\w-])")
"""Matches a key inside other text; written so that it cannot backtrack excessively."""
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]{0,256}:[^\s/@]{1,1024}(?=@)")
"""User and password in a URL."""
_RUN = re.compile(r"[A-Za-z0-9]+")


def looks_like_key(text: str) -> bool:
    """Return whether `text` looks like a key: it has a known format or a long random run of characters."""
    if KEY.search(text) or _CREDENTIALS.search(text):
        return True
    if "/" in text or " " in text:
        return False
    return any(_is_random(run) for run in _RUN.findall(text[:4096]))


def hide_keys(text: str) -> str:
    """Return `text` with keys of known formats and users and passwords in URLs masked."""
    return _CREDENTIALS.sub(HIDDEN, KEY.sub(HIDDEN, text))


def _is_random(run: str) -> bool:
    """Return whether letters and digits are mixed in a way that no word has."""
    digits = sum(character.isdigit() for character in run)
    changes = sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(run))
    return len(run) >= 20 and 4 <= digits < len(run) and changes >= 5
