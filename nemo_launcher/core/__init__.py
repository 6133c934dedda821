"""The launcher floor: configuration, preflight, stages and launchers. Nothing here imports torch."""
