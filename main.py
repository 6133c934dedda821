# SPDX-License-Identifier: Apache-2.0
"""Compose a configuration, check it, and run or submit its stages: python3 main.py stages=adapter_learning"""

import sys

if __name__ == "__main__":
    try:
        from nemo_launcher.entry import launch
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(launch())
