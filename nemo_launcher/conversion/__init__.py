# SPDX-License-Identifier: Apache-2.0
"""Conversion of Hugging Face and GGUF models into base models."""
