"""Composes a configuration, checks it, and runs or submits the chosen stages: python3 main.py stages=adapter_learning"""

import sys

from nemo_launcher.core.launch import main

if __name__ == "__main__":
    sys.exit(main())
