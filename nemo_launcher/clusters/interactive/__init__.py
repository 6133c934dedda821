"""This machine (`cluster_type=interactive`)."""
