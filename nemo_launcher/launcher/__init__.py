# SPDX-License-Identifier: Apache-2.0
"""The launcher: compose the configuration, check the plan and launch the jobs. Never imports torch."""
