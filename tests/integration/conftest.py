# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the integration tests."""

from tests.integration.slurm_cluster import slurm

__all__ = ["slurm"]
