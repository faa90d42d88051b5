"""Metrics, traces, logs, and the listener that shows them."""
