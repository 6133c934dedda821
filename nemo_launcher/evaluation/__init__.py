# SPDX-License-Identifier: Apache-2.0
"""Generation, metrics and reports."""
