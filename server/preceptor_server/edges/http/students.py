"""Tokenizers that cut the text of responses: the teacher's own, and students' from folders that have a name here.

They are the operator's, not a stranger's: read in this process, on first use, and registered like any student's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.wire import TokenArray

from preceptor_server.alignment.handover import Registration
from preceptor_server.errors import InvalidRequestError, InvalidTokenizerError, NotYetImplementedError, StartupError
from preceptor_server.hosted import HostedTeacher

if TYPE_CHECKING:
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """Whose ids and texts a request carries."""

    tokenizer_id: str
    """What the wire knows it by; empty for the teacher's own."""
    tokenizer: TeacherTokenizer | None
    """None where this server has only its vocabulary."""

    def encode(self, text: str, *, field: str) -> TokenArray:
        """Ids of a text that follows others. Raises InvalidRequestError or NotYetImplementedError."""
        if self.tokenizer is None:
            raise NotYetImplementedError(
                field, "this server cannot cut text with that tokenizer: send ids, or name one of http.tokenizers"
            )
        return self.tokenizer.encode(text, add_special_tokens=False, field=field)


class Students:
    """The tokenizers of one teacher's requests, by name or id."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._loaded: dict[str, TeacherTokenizer] = {}
        self._loading = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._folders))

    async def find(self, name: str, teacher: HostedTeacher) -> Student:
        """By a name of http.tokenizers, else by a registered id, which may turn out to be none later on."""
        if name in self._folders:
            return await self._registered(name, teacher)
        if name in ("", teacher.tokenizer_id):
            return Student(tokenizer_id="", tokenizer=teacher.tokenizer)
        return Student(tokenizer_id=name, tokenizer=None)

    async def _registered(self, name: str, teacher: HostedTeacher) -> Student:
        if teacher.aligner is None:
            raise NotYetImplementedError("tokenizer", "this teacher cannot align other tokenizers than its own")
        tokenizer, registry = await self._load(name), teacher.aligner.registry
        registration = _registration_of(tokenizer)
        try:
            alignment = await registry.register(registration)
            if alignment is None:  # not yet, or not any more
                alignment = await registry.register(replace(registration, tokenizer_json=tokenizer.json.encode()))
        except InvalidTokenizerError as error:
            raise InvalidRequestError("tokenizer", f"{name!r}: {error}", reason=error.reason) from error
        assert alignment is not None, "the tokenizer was handed over"
        return Student(tokenizer_id=alignment.tokenizer_id, tokenizer=tokenizer)

    async def _load(self, name: str) -> TeacherTokenizer:
        async with self._loading:
            if name not in self._loaded:
                self._loaded[name] = await asyncio.to_thread(_load, name, self._folders[name])
            return self._loaded[name]


def _load(name: str, folder: Path) -> TeacherTokenizer:
    from preceptor_server.alignment.teacher_tokenizer import load_tokenizer

    try:
        return load_tokenizer(
            str(folder.resolve()), field=f"http.tokenizers.{name}", gguf_file=None, trust_remote_code=False
        )
    except StartupError as error:
        raise InvalidRequestError("tokenizer", str(error), reason="INVALID_TOKENIZER") from error


def _registration_of(tokenizer: TeacherTokenizer) -> Registration:
    """Without the megabytes, which the registry may have already."""
    return Registration(
        tokenizer_id=tokenizer.tokenizer_id,
        chat_template=tokenizer.chat_template,
        end_token_ids=tokenizer.end_token_ids,
    )
