"""GPT and Llama-style models."""
