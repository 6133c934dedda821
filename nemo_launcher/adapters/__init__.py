# SPDX-License-Identifier: Apache-2.0
"""Adapter methods, the registry that names them and the injection into a frozen model."""
