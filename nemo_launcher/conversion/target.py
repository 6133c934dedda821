# SPDX-License-Identifier: Apache-2.0
"""What stands where a conversion is to write: nothing, a base of its own, or what is somebody else's. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.checkpoint.archive import read_config, read_leading_config
from nemo_launcher.errors import Problem, UserError

KEY = "model.nemo_path"
_STAMP = "converted_from"
PATH = "path"
"""In the stamp: where the source was. One that was moved, with the same content, is the same source."""
_FIX = "name another file, or remove it yourself"


def check_target(source: Path, target: Path) -> None:
    """Raise UserError when `target` may not be written.

    Refused are the source, a place inside it, a folder or device, and a file that no conversion of the same source has
    made. A base of ours that is cut short is known by its configuration, with which it begins.
    """
    place, origin = target.resolve(), source.resolve()
    if place == origin or (target.exists() and target.samefile(source)):
        raise UserError(Problem(KEY, f"{target} is the model that is to be converted", "name another file"))
    if origin.is_dir() and place.is_relative_to(origin):
        what = f"{target} lies in the folder that is to be converted"
        raise UserError(Problem(KEY, what, "name a file outside of it"))
    if not target.exists():
        return
    if not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or pipe"
        raise UserError(Problem(KEY, f"{target} is {kind}", "name a file: /path/to/base.nemo"))
    stamp = stamp_of(target)
    if stamp is None:
        what = f"{target} was not made by a conversion (or is damaged in its first bytes): it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))
    if stamp.get("file") not in (source.name, origin.name):
        what = f"{target} was made from another model, {str(stamp.get('file'))[:200]}: it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))


def check_origin(source: Path, target: Path, sha256: str) -> None:
    """Raise UserError when `target` was made from other content than `source` has, which lay in another place.

    Folders of other models have the same name often enough (`hf`, `checkpoint-1000`). sha256: of the source.
    """
    stamp = (stamp_of(target) if target.exists() else None) or {}
    path = stamp.get(PATH)
    if isinstance(path, str) and path != os.path.abspath(source) and stamp.get("sha256") != sha256:
        what = f"{target} was made from another model, {path[:200]}: it is not replaced"
        raise UserError(Problem(KEY, what, _FIX))


def stamp_of(target: Path) -> Mapping[str, object] | None:
    """Return what a base says of the source it was converted from; None when it does not."""
    stamp = (read_leading_config(target) or {}).get(_STAMP)
    return stamp if isinstance(stamp, Mapping) else None


def is_made(target: Path, stamp: Mapping[str, object]) -> bool:
    """Whether `target` is whole, and made from the same source by the same converter as `stamp` says."""
    if not target.exists():
        return False
    try:
        found = read_config(target).get(_STAMP)
    except UserError:  # cut short: it is made again
        return False
    return isinstance(found, Mapping) and {key: found.get(key) for key in stamp} == dict(stamp)
