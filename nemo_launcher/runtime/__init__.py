# SPDX-License-Identifier: Apache-2.0
"""What every process of a job shares: ranks, signals, memory, progress and start-up."""
