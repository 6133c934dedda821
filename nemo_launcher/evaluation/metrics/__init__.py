# SPDX-License-Identifier: Apache-2.0
"""Metrics: one module for each kind, which registers its metrics. Imports neither torch nor NumPy on import."""
