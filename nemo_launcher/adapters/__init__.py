# SPDX-License-Identifier: Apache-2.0
"""Adapter methods, their registry, and their injection into a frozen model."""
