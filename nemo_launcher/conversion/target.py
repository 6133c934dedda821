# SPDX-License-Identifier: Apache-2.0
"""Check the target of a conversion: it must be absent or from the same source. Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.checkpoint.archive import read_config, read_leading_config
from nemo_launcher.checkpoint.hub_model import title_of
from nemo_launcher.errors import Problem, UserError

KEY = "model.nemo_path"
_STAMP = "converted_from"
PATH = "path"
"""The stamp's key for the source's location. A moved source with the same content is the same source."""
_FIX = "choose another file, or remove this one yourself"


def check_target(source: Path, target: Path) -> None:
    """Raise UserError when `target` must not be written.

    Refused are the source, a path inside it, a folder or device, and any file that is not from a conversion of the same
    source. A truncated base model is recognised by its configuration, which comes first.
    """
    place, origin = target.resolve(), source.resolve()
    if place == origin or (target.exists() and target.samefile(source)):
        raise UserError(Problem(KEY, f"{target} is the model to be converted", "name another file"))
    if origin.is_dir() and place.is_relative_to(origin):
        what = f"{target} is inside the folder to be converted"
        raise UserError(Problem(KEY, what, "choose a file outside of it"))
    if not target.exists():
        return
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or pipe"
        raise UserError(Problem(KEY, f"{target} is {kind}", "name a file: /path/to/base.nemo"))
    stamp = stamp_of(target)
    if stamp is None:
        what = f"{target} was not made by a conversion (or its first bytes are damaged), so it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))
    if stamp.get("file") not in (title_of(source), origin.name):
        what = f"{target} was made from another model, {str(stamp.get('file'))[:200]}, so it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))


def check_origin(source: Path, target: Path, sha256: str) -> None:
    """Raise UserError when `target` was made from a source with different content at a different location.

    Folders of different models often have the same name (`hf`, `checkpoint-1000`). sha256: that of the source.
    """
    stamp = (stamp_of(target) if target.exists() else None) or {}
    path = stamp.get(PATH)
    if isinstance(path, str) and path != os.path.abspath(source) and stamp.get("sha256") != sha256:
        what = f"{target} was made from another model, {path[:200]}, so it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))


def stamp_of(target: Path) -> Mapping[str, object] | None:
    """Return the facts about its source in a base model; None if it has none."""
    stamp = (read_leading_config(target) or {}).get(_STAMP)
    return stamp if isinstance(stamp, Mapping) else None


def is_made(target: Path, stamp: Mapping[str, object]) -> bool:
    """Return whether `target` is complete and from the source and converter described by `stamp`."""
    if not target.exists():
        return False
    try:
        found = read_config(target).get(_STAMP)
    except UserError:  # truncated: convert it again
        return False
    return isinstance(found, Mapping) and {key: found.get(key) for key in stamp} == dict(stamp)
