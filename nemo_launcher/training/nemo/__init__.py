# SPDX-License-Identifier: Apache-2.0
"""All code that uses Lightning and nemo_toolkit, behind a single function, fit."""
