# SPDX-License-Identifier: Apache-2.0
"""NGC Base Command Platform (`cluster_type=bcp`)."""
