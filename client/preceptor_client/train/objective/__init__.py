"""Turns scored episodes into what a loss compares: supports, targets, weights. Moves no weights."""
