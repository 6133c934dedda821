# SPDX-License-Identifier: Apache-2.0
"""This machine (`cluster_type=interactive`)."""
