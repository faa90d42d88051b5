"""The model in training: loading, forwards, generation, output head. Knows nothing of teachers or of losses."""
