"""NGC Base Command Platform (`cluster_type=bcp`)."""
