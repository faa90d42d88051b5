"""The trainer: rolls a student out, asks a teacher about every position, and moves the student toward it.

`run.train.train` runs it. Rooms import each other in one direction (docs/architecture.md): data, student, rollout,
teacher, objective, learner, evaluation, instruments, record, start, run, report. This package itself imports no torch.
"""
