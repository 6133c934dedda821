# SPDX-License-Identifier: Apache-2.0
"""Forms in which other programs keep adapters: PEFT's folders, and weights with the adapter folded in."""
