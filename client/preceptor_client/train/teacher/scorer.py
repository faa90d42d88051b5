"""The seam for teachers: what the trainer asks one for. Knows no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol, Unpack

from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.parts import Seam
from preceptor_client.types import GroupScores, Prompt, Registration, ServerInfo


class Scorer(Protocol):
    """A teacher: the part of BlockingTeacherClient that the trainer uses. One class, named in TOML: teacher.kind =
    "package.module:Name". It may have a method `close`, which is called when the run ends."""

    def info(self) -> ServerInfo:
        """What the server hosts, and its limits."""

    def register_tokenizer(
        self,
        tokenizer_json: str,
        *,
        chat_template: str | None = None,
        teacher: str = "",
        end_token_ids: Sequence[int] = (),
        teacher_end_token_ids: Sequence[int] = (),
        special_pairs: Mapping[str, str] = {},
        vocabulary_size: int = 0,
    ) -> Registration:
        """Hands the student's tokenizer to the server; says how it aligns with the teacher's."""

    def submit(
        self, prompt: Prompt, responses: Sequence[Sequence[int]], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        """Starts a score and returns at once."""


GRPC = "grpc"
"""The built-in teacher: a client that the run opens and closes."""
SCORERS: Seam[Scorer] = Seam(what="a teacher", protocol=Scorer, builtins={})
