"""The same as main.py at the top of the checkout, where the documented commands look for it."""

import sys
from pathlib import Path

# the checkout instead of this folder, whose scripts would hide packages of the same name
sys.path[0] = str(Path(__file__).resolve().parents[1])

from nemo_launcher.entry import launch  # noqa: E402

if __name__ == "__main__":
    sys.exit(launch())
