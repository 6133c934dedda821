# SPDX-License-Identifier: Apache-2.0
"""The Python interface, which the console verbs use too: a loaded model, and training."""
