"""Models that score: each implements the Protocol in base.py and knows nothing of gRPC or of clients."""
