# SPDX-License-Identifier: Apache-2.0
"""IA3: learned vectors that scale keys, values and the feed-forward activations."""
