# SPDX-License-Identifier: Apache-2.0
"""Frozen Megatron-core models, built from the configuration inside a checkpoint."""
