# SPDX-License-Identifier: Apache-2.0
"""Check the Python version and the dependencies, and explain what is missing.

Only the standard library is imported, and the code runs on Python 3.8 and later, as a container may have any version.
"""

from __future__ import annotations

import re
import sys

MINIMUM_PYTHON = (3, 10)
"""The same as `requires-python` in pyproject.toml."""

MINIMUM_VERSIONS = {"torch": "2.6", "transformers": "4.57.1"}
"""The lower bounds in pyproject.toml of what containers bring along."""

OPTIONAL_IMPORTS = ("transformer_engine", "flash_attn", "flash_attn_3", "apex", "grouped_gemm", "mamba_ssm", "xformers")
"""Packages that megatron-core and nemo_toolkit import where they are installed, and that nothing here needs."""


def python_problem() -> str | None:
    """Return what is wrong with this version of Python; None if it is supported."""
    if sys.version_info >= MINIMUM_PYTHON:
        return None
    found, needed = (".".join(map(str, version)) for version in (sys.version_info[:2], MINIMUM_PYTHON))
    return f"Python {found} in {sys.executable}: {needed} or later is needed\n    -> {_install()}"


def missing_module(error: ModuleNotFoundError) -> str | None:
    """Return how to install a missing dependency; None for a missing module of this package, which is a bug."""
    if error.name is None or error.name.partition(".")[0] == __package__:
        return None
    top = error.name.partition(".")[0]
    what = f"not installed for {sys.executable}"
    if top != error.name and top in sys.modules:  # the installed version lacks this module
        what = f"not part of the {top} {_version(top)} that {sys.executable} has"
    return f"{error.name}: {what}\n    -> {_install()}"


def check_libraries() -> None:
    """Raise UserError for libraries that are older than the oldest tested versions."""
    from nemo_launcher.errors import Problem, UserError

    found = {name: _version(name) for name in MINIMUM_VERSIONS}
    old = [
        Problem(f"{name} {version}", f"{MINIMUM_VERSIONS[name]} or later is needed", _install())
        for name, version in found.items()
        if version and _numbers(version) < _numbers(MINIMUM_VERSIONS[name])
    ]
    if old:
        raise UserError(old)


def refuse_broken(error: Exception) -> None:
    """Raise UserError if an import failed inside an installed package that nothing here needs; return otherwise.

    megatron-core imports such packages where they are installed. One that was compiled for another version of torch
    fails with an error that explains neither the cause nor the fix.
    """
    from nemo_launcher.errors import Problem, UserError

    names, trace = [], error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0])
        trace = trace.tb_next
    broken = [name for name in names if name in OPTIONAL_IMPORTS]
    if not broken:
        return
    name = broken[-1].replace("_", "-")
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    fix = f"{sys.executable} -m pip uninstall {name}: nothing here needs it; or install a build for this torch"
    where = f"{name} {_version(name)}".rstrip()
    raise UserError(Problem(where, f"is installed, but cannot be imported: {reason}", fix)) from error


def is_transformers_5() -> bool:
    """Return whether transformers is version 5 or later, whose configurations and tokenizers differ from version 4."""
    return is_at_least("transformers", "5")


def is_at_least(name: str, version: str) -> bool:
    """Return whether a library is installed in a version or a later one."""
    return _numbers(_version(name)) >= _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a release: (2, 6, 0) for 2.6.0a0+cu124."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[a-z+-]", version)[0]))


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _install() -> str:
    """Return how to install the dependencies: with make in a checkout, otherwise with pip."""
    from nemo_launcher import __version__, places

    image = f"in a container: the image must hold what `pip install nemo-adapter-launcher=={__version__}` installs"
    if places.INSTALLED:
        return f"{sys.executable} -m pip install nemo-adapter-launcher=={__version__}; {image}"
    return f"make install, then . .venv/bin/activate, whose python3 has all that is needed; {image}"
