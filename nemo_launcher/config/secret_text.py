# SPDX-License-Identifier: Apache-2.0
"""What looks like a key or token: such text is never echoed, whatever it stands in."""

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
"""A key inside other text; every part of it is bounded or followed by nothing, so that it cannot backtrack."""
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]{0,256}:[^\s/@]{1,1024}(?=@)")
"""User and password in a URL."""
_RUN = re.compile(r"[A-Za-z0-9]+")


def looks_like_key(text: str) -> bool:
    """Return whether `text` as a whole is a key rather than a name or word: a known form, or a long random run."""
    if KEY.search(text) or _CREDENTIALS.search(text):
        return True
    if "/" in text or " " in text:
        return False
    return any(_is_random(run) for run in _RUN.findall(text[:4096]))


def hide_keys(text: str) -> str:
    """Return `text` with every known form of a key replaced, and the user and password of URLs."""
    return _CREDENTIALS.sub(HIDDEN, KEY.sub(HIDDEN, text))


def _is_random(run: str) -> bool:
    """Whether a run of letters and digits mixes them as no word does."""
    digits = sum(character.isdigit() for character in run)
    changes = sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(run))
    return len(run) >= 20 and 4 <= digits < len(run) and changes >= 5
