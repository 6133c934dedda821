"""Composes a configuration, checks it, runs or submits its stages: python3 main.py stages=adapter_learning"""

import sys

from nemo_launcher.entry import launch

if __name__ == "__main__":
    sys.exit(launch())
