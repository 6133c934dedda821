# SPDX-License-Identifier: Apache-2.0
"""Evaluation: generation, metrics and reports."""
