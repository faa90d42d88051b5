"""Experiments with real models; each says how to run it."""
