"""Optimizer steps: loss, gradients, checkpoints. Knows nothing of sampling or of networks."""
