# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Hub: names of what lies there, and how a launch fetches it. Imports nothing heavy."""
