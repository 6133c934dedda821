"""The same as main.py at the top of the checkout, where the documented commands look for it."""

import os
import sys

# the checkout instead of this folder, whose scripts would hide packages of the same name
sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

if __name__ == "__main__":
    try:
        from nemo_launcher.entry import launch
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(launch())
