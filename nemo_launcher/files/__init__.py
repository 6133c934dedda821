# SPDX-License-Identifier: Apache-2.0
"""Files: safe writes, locks, and the one door for files that others wrote."""
