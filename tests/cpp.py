# SPDX-License-Identifier: Apache-2.0
"""Check for a C++ compiler that works with torch.compile."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

_CAN = shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").is_file()
needs_cpp = pytest.mark.skipif(not _CAN, reason="torch.compile needs a C++ compiler and Python's headers")
