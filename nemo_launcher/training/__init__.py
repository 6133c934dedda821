# SPDX-License-Identifier: Apache-2.0
"""The training job: the ModelPT, the optimisation step, resume."""
