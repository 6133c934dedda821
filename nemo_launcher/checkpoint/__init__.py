"""`.nemo` archives and the weight maps between Hugging Face, NeMo and Megatron-core."""
