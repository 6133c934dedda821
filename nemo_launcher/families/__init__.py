# SPDX-License-Identifier: Apache-2.0
"""The model families: everything that differs between GPT and T5."""
