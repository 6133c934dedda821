"""The model families: everything that differs between GPT and T5."""
