# SPDX-License-Identifier: Apache-2.0
"""Kubernetes (`cluster_type=k8s`)."""
