"""Slurm (`cluster_type=bcm`)."""
