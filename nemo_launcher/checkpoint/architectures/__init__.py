# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face architectures that can be converted to a base, each declared in one file. Imports no torch."""
