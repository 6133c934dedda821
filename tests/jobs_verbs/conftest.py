# SPDX-License-Identifier: Apache-2.0
"""The launcher's fixtures, see tests/workplace.py."""

from tests.workplace import (
    MAKE_ADAPTER,
    REPOSITORY,
    Result,
    Workplace,
    configuration_files_parsed_once,
    console,
    executable,
    launch,
    plain_path,
    prepared,
    slurm,
    workplace,
)

__all__ = [
    "MAKE_ADAPTER",
    "REPOSITORY",
    "Result",
    "Workplace",
    "configuration_files_parsed_once",
    "console",
    "executable",
    "launch",
    "plain_path",
    "prepared",
    "slurm",
    "workplace",
]
