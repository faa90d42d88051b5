"""The trainer: rolls a student out, asks a teacher about every position, and moves the student toward it.

`run.train.train` runs it. Rooms import each other in one direction (docs/architecture.md): data, environment,
student, rollout, teacher, objective, learner, record, instruments, evaluation, tasks, start, report, run. This package
itself imports no torch.
"""
