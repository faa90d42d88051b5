"""What a student may talk to: the seam for environments, tools, and adapters. Knows no student, tokenizer or engine."""
