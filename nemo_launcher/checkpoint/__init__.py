# SPDX-License-Identifier: Apache-2.0
"""`.nemo` archives and the weight maps between Hugging Face, NeMo and Megatron-core."""
