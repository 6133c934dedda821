# SPDX-License-Identifier: Apache-2.0
"""The launcher's fixtures, see tests/workplace.py."""

from tests.workplace import *  # noqa: F403
