# SPDX-License-Identifier: Apache-2.0
"""The same as main.py at the top of the checkout, where the documented commands look for it."""

import sys
from pathlib import Path

# instead of this folder, whose scripts would hide packages of the same name: the checkout, or the installed package's
sys.path[0] = str(next(up for up in Path(__file__).resolve().parents if (up / "nemo_launcher").is_dir()))

if __name__ == "__main__":
    try:
        from nemo_launcher.entry import launch
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(launch())
