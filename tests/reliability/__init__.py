# SPDX-License-Identifier: Apache-2.0
"""Drivers that try to lose work, to inject content or to crash the project; each writes a JSON report."""
