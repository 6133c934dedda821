# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters after attention and feed-forward: `parallel_adapter` and `linear_adapter`."""
