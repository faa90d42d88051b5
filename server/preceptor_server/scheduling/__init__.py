"""Queues, admission, batches: decides which groups an engine computes next. Knows no transport and no model."""
