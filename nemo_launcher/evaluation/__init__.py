"""Generation, metrics and reports."""
