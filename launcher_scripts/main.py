# SPDX-License-Identifier: Apache-2.0
"""Does the same as main.py at the top of the checkout; documented commands use this path."""

import sys
from pathlib import Path

# replace this folder, whose scripts would shadow packages of the same name, by the parent of nemo_launcher
here = Path(__file__).resolve()
sys.path[0] = str(next((up for up in here.parents if (up / "nemo_launcher").is_dir()), here.parent))

if __name__ == "__main__":
    try:
        from nemo_launcher.entry import launch
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(launch())
