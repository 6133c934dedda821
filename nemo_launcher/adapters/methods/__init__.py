# SPDX-License-Identifier: Apache-2.0
"""One folder an adapter method: config.py, its settings and registration, and layer.py, its torch module."""
