"""Reads examples: JSONL files and named datasets in, `Example`s out. Knows nothing of models or of teachers."""
