"""Checks before the first step: does this student, teacher, data and objective fit? Trains nothing."""
