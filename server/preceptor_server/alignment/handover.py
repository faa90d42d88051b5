"""What a student hands over when it registers, and the id that stands for all of it. Imports no tokenizer library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a student hands over; the fields of RegisterTokenizerRequest."""

    tokenizer_id: str
    tokenizer_json: bytes = field(default=b"", repr=False)
    chat_template: str | None = field(default=None, repr=False)
    end_token_ids: tuple[int, ...] = ()
    teacher_end_token_ids: tuple[int, ...] = ()
    special_pairs: Mapping[str, str] = field(default_factory=dict)
    vocabulary_size: int = 0

    @property
    def registered_id(self) -> str:
        """The fingerprint itself, unless the registration says more than that."""
        more = {
            "end_token_ids": self.end_token_ids,
            "teacher_end_token_ids": self.teacher_end_token_ids,
            "special_pairs": dict(self.special_pairs),
            "vocabulary_size": self.vocabulary_size,
        }
        if not any(more.values()):
            return self.tokenizer_id
        canonical = json.dumps({"tokenizer_id": self.tokenizer_id, **more}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
