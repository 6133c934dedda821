# SPDX-License-Identifier: Apache-2.0
"""The launcher: composes the configuration, checks the plan and submits the jobs. No torch."""
