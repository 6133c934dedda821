# SPDX-License-Identifier: Apache-2.0
"""Base models made of Hugging Face and GGUF models."""
