"""Environments: what answers the student, turn by turn. Knows nothing of tokens, models or teachers."""
