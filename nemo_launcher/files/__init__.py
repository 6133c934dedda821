# SPDX-License-Identifier: Apache-2.0
"""Files: atomic writes, locks, and the reader of untrusted files."""
