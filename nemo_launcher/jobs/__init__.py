# SPDX-License-Identifier: Apache-2.0
"""Jobs after their launch: their records, their state, their logs, their end."""
