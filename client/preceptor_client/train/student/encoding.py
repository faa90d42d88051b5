"""An example's prompt in the student's ids. A chat template is a foreign program: whatever it raises is the example's
fault, and is told with the example's place. Knows nothing of teachers."""

# V = rows of the student's embedding, D = hidden size

from __future__ import annotations

import torch

from preceptor_client.errors import PreceptorError
from preceptor_client.train.data.examples import ExamplePrompt
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.student.student import Student


def encode_prompt(student: Student, prompt: ExamplePrompt, *, where: str, field: str = "prompt") -> list[int]:
    """Ids that the student's model knows, at least one. Raises InvalidDataError, which names `where` and `field`."""
    if not isinstance(prompt, str) and not student.tokenizer.chat_template:
        raise InvalidDataError(
            f"its {field} is a conversation, and the student's tokenizer has no chat template: give the {field} as a "
            "text, or put a template into the student's folder",
            where=where,
        )
    ids = encoded(student, prompt, where=where, field=field)
    weight_VD = student.model.get_input_embeddings().weight
    assert isinstance(weight_VD, torch.Tensor)
    if (largest := max(ids)) >= len(weight_VD):
        text = student.tokenizer.convert_ids_to_tokens(largest)
        raise InvalidDataError(
            f"its {field} has token {text!r} (id {largest}), and the student's model has rows for ids below "
            f"{len(weight_VD)}: add rows to the model (resize_token_embeddings), or take the token out of the {field}",
            where=where,
        )
    return ids


def encoded(student: Student, prompt: ExamplePrompt, *, where: str, field: str) -> list[int]:
    """At least one id, whether or not the student's model knows it. Raises InvalidDataError."""
    try:
        ids = student.encode_prompt(prompt)
    except (PreceptorError, MemoryError):
        raise
    except Exception as error:
        whose = "tokenizer cannot read" if isinstance(prompt, str) else "chat template refuses"
        raise InvalidDataError(f"the student's {whose} its {field}: {message_of(error)}", where=where) from error
    if not ids:
        raise InvalidDataError(f"its {field} has no tokens, and cannot be answered", where=where)
    return ids
