# SPDX-License-Identifier: Apache-2.0
"""The configuration: its schema, its sections, and the rules that values follow. No torch."""
