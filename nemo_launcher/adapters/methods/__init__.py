# SPDX-License-Identifier: Apache-2.0
"""One file an adapter method; each registers itself."""
