"""Composes a configuration, checks it, runs or submits its stages: python3 main.py stages=adapter_learning"""

import sys

from nemo_launcher.core.launch import main

if __name__ == "__main__":
    sys.exit(main())
