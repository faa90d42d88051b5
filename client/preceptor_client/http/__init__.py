"""Asks a teacher server over HTTP, for people who debug: docs/http.md. Trainers ask over gRPC, with `teacher`.

connection.py  one server: asks, repeats what may pass, within a deadline; the only module that needs httpx
problems.py    what a failed call says (RFC 9457), and what to raise for it
answers.py     JSON -> frozen dataclasses
topk.py        the answer of /v1/topk as the scores that gRPC gives, verified like those
"""
