# SPDX-License-Identifier: Apache-2.0
"""GPT and Llama-style models."""
