# SPDX-License-Identifier: Apache-2.0
"""All of Lightning and nemo_toolkit: one function, fit, that trains."""
