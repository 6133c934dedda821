# SPDX-License-Identifier: Apache-2.0
"""The configuration: schema, sections, and rules for values. Never imports torch."""
