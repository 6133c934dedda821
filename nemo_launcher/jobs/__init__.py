"""Jobs after their launch: their records, their state, their logs, their end."""
