# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters behind attention and feed-forward: `parallel_adapter` and `linear_adapter`."""
