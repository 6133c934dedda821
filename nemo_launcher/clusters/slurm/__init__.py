# SPDX-License-Identifier: Apache-2.0
"""Slurm (`cluster_type=bcm`)."""
