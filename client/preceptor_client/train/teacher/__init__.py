"""Asks teacher servers about what a student wrote. Knows nothing of losses."""
