"""Base models made of Hugging Face and GGUF models."""
