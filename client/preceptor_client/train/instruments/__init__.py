"""Measures the three failure modes of on-policy distillation, step by step. Numpy only; moves no weights, and asks no
server. docs/instruments.md says what each number means."""
