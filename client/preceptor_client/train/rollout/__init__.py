"""Rolls the student out: tasks in, episodes out. Knows nothing of teachers or of losses."""
