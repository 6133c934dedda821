# SPDX-License-Identifier: Apache-2.0
"""Adapter Learning and IA3 for frozen Megatron GPT and T5 models, from a laptop to a cluster."""

__version__ = "0.2.0"
