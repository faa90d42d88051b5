"""A tiny student that really calls a tool, since it was taught one conversation by heart; and its environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from preceptor_client.train.environment.functions import Function
from preceptor_client.train.environment.tools import ToolEnvironment
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_llama
from tests.unit.client.train.rollout.chat_templates import CHATML, chat_tokenizer

PLACES = ("tea", "lid", "oar")
CALL = '<think>a</think><tool_call>{"name": "look", "arguments": {}}</tool_call>'
ANSWER = "<think>b</think>so red"
NUM_LESSONS = 150

KEEPS = CHATML
FORGETS = CHATML.replace(
    "message.role + '\\n' + message.content",
    "message.role + '\\n' + (message.content.split('</think>')[-1] "
    "if message.role == 'assistant' else message.content)",
)
"""Drops the thinking of every earlier turn, as DeepSeek R1's template does."""


class Lookup(ToolEnvironment):
    """One tool. An answer that says what the tool said is worth `worth`, any other nothing."""

    def __init__(self, worth: float = 1.0) -> None:
        super().__init__()
        self._worth = worth

    def functions(self) -> Sequence[Function]:
        return (self.look,)

    def look(self) -> str:
        """Looks."""
        return f"{self.example.answer} is red"

    def reward(self, text: str) -> float:
        return self._worth * ("red" in text)


def pupil_tokenizer(template: str) -> PreTrainedTokenizerFast:
    return chat_tokenizer(template)


def save_pupil(folder: Path) -> Path:
    """The student, with the template that keeps what it wrote."""
    tokenizer = pupil_tokenizer(KEEPS)
    model = tiny_llama(seed=1, spread=0.1, vocabulary_size=len(tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    lessons = [
        torch.tensor([tokenizer(_told(place, template), add_special_tokens=False)["input_ids"]])
        for place in PLACES
        for template in (KEEPS, FORGETS)
    ]
    for number in range(NUM_LESSONS):
        ids_1T = lessons[number % len(lessons)]
        optimizer.zero_grad()
        model(ids_1T, labels=ids_1T).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_stranger(folder: Path, *, seed: int) -> Path:
    """Random weights and the same tokenizer."""
    tokenizer = pupil_tokenizer(KEEPS)
    tiny_llama(seed=seed, vocabulary_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _told(place: str, template: str) -> str:
    """The whole conversation, the second turn as it is written."""
    tokenizer = pupil_tokenizer(template)
    messages = [
        {"role": "user", "content": f"Where is {place}?"},
        {"role": "assistant", "content": CALL},
        {"role": "tool", "content": f"{place} is red"},
    ]
    before = tokenizer.apply_chat_template(
        messages, tools=[*Lookup().tools], tokenize=False, add_generation_prompt=True
    )
    return f"{before}{ANSWER}<|im_end|>"
