"""Files: safe writes, locks, and the one door for files that others wrote."""
