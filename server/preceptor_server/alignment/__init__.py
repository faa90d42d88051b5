"""Whose tokens are these: the teacher's tokenizer, and how what a student wrote reads in it."""
