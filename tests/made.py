# SPDX-License-Identifier: Apache-2.0
"""Base checkpoints that many tests begin with: made once in a process, copied for each test."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.conversion.convert import convert

_made: dict[str, tuple[Path, Tensor]] = {}


@functools.cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="bases")


def converted(path: Path, save: Callable[..., Path], **options: Any) -> Path:
    """Write the base that is converted from `save(folder, **options)`, a Hugging Face model, to `path`; return it.

    The model lies beside it, in `<stem>_hf`, and torch's random state is the one that making it leaves.
    """
    key = f"{save.__module__}.{save.__name__}{sorted(options.items())}"
    if key not in _made:
        folder = Path(_folder().name) / str(len(_made))
        convert(save(folder / "base_hf", **options), folder / "base.nemo")
        _made[key] = folder, torch.get_rng_state()
    folder, random_state = _made[key]
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "base_hf", path.with_name(f"{path.stem}_hf"), dirs_exist_ok=True)
    torch.set_rng_state(random_state)
    return Path(shutil.copyfile(folder / "base.nemo", path))
