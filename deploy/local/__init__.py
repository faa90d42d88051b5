"""On one machine: the demo, and the model that it teaches."""
