"""A policy that writes what a test says, and keeps what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from preceptor.json_values import Json
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.rollout.engine import Written
from preceptor_client.train.student.view import StudentView
from transformers import PreTrainedTokenizerFast

from tests.unit.client.train.rollout.chat_templates import token_id

Write = Callable[[Sequence[int]], Sequence[int]]
"""The ids that follow a prompt."""


@dataclass(kw_only=True)
class ScriptedPolicy:
    tokenizer: PreTrainedTokenizerFast
    write_ids: Write
    end_tokens: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")
    max_length: int = 10_000
    num_ids: int = 1_000
    chat_template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    written: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """Every prompt and what followed it, in order."""
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each call: prompts, max_new_tokens, seed."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        return tuple(token_id(self.tokenizer, token) for token in self.end_tokens)

    def encode(self, prompt: ExamplePrompt, *, example: Example) -> tuple[int, ...]:
        raise AssertionError("conversations are encoded as they are rendered")

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def write(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, top_p: float, max_new_tokens: int, seed: int
    ) -> list[Written]:
        self.calls.append((len(prompts), max_new_tokens, seed))
        return [self._written(tuple(prompt), max_new_tokens=max_new_tokens) for prompt in prompts]

    def view(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[StudentView]:
        raise AssertionError("what the student wrote itself has a view")

    def _written(self, prompt: tuple[int, ...], *, max_new_tokens: int) -> Written:
        ids = tuple(self.write_ids(prompt))[:max_new_tokens]
        self.written.append((prompt, ids))
        column_T = np.arange(len(ids), dtype=np.float32)
        return Written(
            ids=ids,
            finish_reason="stop" if ids[-1] in self.end_token_ids else "length",
            student=StudentView(logprobs_T=-column_T, entropies_T=column_T),
        )


def writes(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Write:
    """One text after the other, whatever the prompt; special tokens as text."""
    left = list(texts)

    def write(prompt: Sequence[int]) -> list[int]:
        ids: list[int] = tokenizer(left.pop(0), add_special_tokens=False)["input_ids"]
        return ids

    return write
