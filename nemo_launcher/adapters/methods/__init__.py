# SPDX-License-Identifier: Apache-2.0
"""One folder per adapter method: config.py with settings and registration, layer.py with the torch module."""
