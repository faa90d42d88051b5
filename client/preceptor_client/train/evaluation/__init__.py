"""Measures a student on held-out examples. Moves no weights."""
