# SPDX-License-Identifier: Apache-2.0
"""The training job: steps, checkpoints and resuming."""
