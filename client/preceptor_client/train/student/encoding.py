"""An example's prompt in the student's ids. A chat template is a foreign program: whatever it raises is the example's
fault, and is told with the example's place. Knows nothing of teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preceptor.json_values import Json

from preceptor_client.errors import PreceptorError
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.student.student import Student, num_rows_of


def encode_example(
    student: Student,
    example: Example,
    *,
    prompt: ExamplePrompt | None = None,
    where: str = "",
    template_kwargs: Mapping[str, Json] | None = None,
) -> list[int]:
    """Ids of the example's prompt, or of `prompt` in its place, with its tools, and with its own template variables
    over those of the run. Raises InvalidDataError, which names `where`, or else the example."""
    prompt, where = example.prompt if prompt is None else prompt, where or example.name
    if isinstance(prompt, str) and (example.tools or example.chat_template_kwargs):
        name = "tools" if example.tools else "chat_template_kwargs"
        raise InvalidDataError(
            f"its '{name}' are for a chat template, and its prompt is a text, which is given to none: write the prompt "
            "as a list of messages",
            where=where,
        )
    return encode_prompt(
        student,
        prompt,
        where=where,
        tools=example.tools,
        template_kwargs={**(template_kwargs or {}), **example.chat_template_kwargs},
    )


def encode_prompt(
    student: Student,
    prompt: ExamplePrompt,
    *,
    where: str,
    field: str = "prompt",
    tools: Sequence[str] = (),
    template_kwargs: Mapping[str, Json] | None = None,
) -> list[int]:
    """Ids that the student's model knows, at least one. Raises InvalidDataError, which names `where` and `field`."""
    if not isinstance(prompt, str) and not student.tokenizer.chat_template:
        raise InvalidDataError(
            f"its {field} is a conversation, and the student's tokenizer has no chat template: give the {field} as a "
            "text, or put a template into the student's folder",
            where=where,
        )
    ids = encoded(student, prompt, where=where, field=field, tools=tools, template_kwargs=template_kwargs)
    num_rows, largest = num_rows_of(student.model), max(ids)
    if largest >= num_rows:
        text = student.tokenizer.convert_ids_to_tokens(largest)
        raise InvalidDataError(
            f"its {field} has token {text!r} (id {largest}), and the student's model has rows for ids below "
            f"{num_rows}: add rows to the model (resize_token_embeddings), or take the token out of the {field}",
            where=where,
        )
    return ids


def encoded(
    student: Student,
    prompt: ExamplePrompt,
    *,
    where: str,
    field: str,
    tools: Sequence[str] = (),
    template_kwargs: Mapping[str, Json] | None = None,
) -> list[int]:
    """At least one id, whether or not the student's model knows it. Raises InvalidDataError."""
    try:
        ids = student.encode_prompt(prompt, tools=tools, template_kwargs=template_kwargs)
    except (PreceptorError, MemoryError):
        raise
    except Exception as error:
        whose = "tokenizer cannot read" if isinstance(prompt, str) else "chat template refuses"
        raise InvalidDataError(f"the student's {whose} its {field}: {message_of(error)}", where=where) from error
    if not ids:
        raise InvalidDataError(f"its {field} has no tokens, and cannot be answered", where=where)
    return ids
