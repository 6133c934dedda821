"""One file an adapter method; each registers itself."""
