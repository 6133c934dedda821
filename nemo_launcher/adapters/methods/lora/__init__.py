# SPDX-License-Identifier: Apache-2.0
"""LoRA: low-rank updates of the weights of projections."""
