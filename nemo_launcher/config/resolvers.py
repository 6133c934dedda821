# SPDX-License-Identifier: Apache-2.0
"""OmegaConf resolvers for configuration files: multiply, divide_ceil, divide_floor, and folder locations."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable

from omegaconf import OmegaConf

from nemo_launcher import places
from nemo_launcher.files.temporary import roomy_folder

SHIPPED_CONF = "${shipped_conf:}"
"""This launcher's conf/ folder, for `hydra.searchpath` of a main file elsewhere."""


def register() -> None:
    """Register the resolvers with OmegaConf. Repeated calls are harmless."""
    resolvers: dict[str, Callable[..., float | str]] = {
        "multiply": lambda a, b: a * b,
        "divide_ceil": lambda a, b: -(-a // b),
        "divide_floor": lambda a, b: a // b,
        "scratch": _scratch_folder,
        "shipped_conf": lambda: str(places.CONF),
        "launcher_scripts": lambda: str(places.LAUNCHER_SCRIPTS),
        "launch_command": lambda: places.LAUNCH,
        "folder_beside": lambda scripts, name: str(places.folder_beside(scripts, name)),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


@functools.cache
def _scratch_folder() -> str:
    """Return a folder that is removed when the launcher ends; Hydra's sweeper needs to write a file."""
    folder = tempfile.mkdtemp(prefix="nemo_launcher_", dir=roomy_folder(0))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
