"""The trainer: rolls a student out, asks a teacher about every position, and moves the student toward it.

`preceptor_client.train.run.train` runs it. This package itself imports no torch, so that settings can be read without.
"""
