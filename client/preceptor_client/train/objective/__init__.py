"""Losses, one module per idea: tensors in, one loss per position out. They know nothing of batches or of teachers."""
