"""A tiny student that knows a few conversations by heart, for tests that need it to say something in particular."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_llama, tiny_tokenizer

Message = tuple[str, str]
"""Role and content."""
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | map(attribute='function.name') | join(' ') }}<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE
)
"""Tells of tools by their names alone: a tiny student has little room."""
NUM_STEPS, LEARNING_RATE, KNOWN_LOSS = 600, 1e-2, 0.02
"""Nats per token of the assistant's, at which a conversation is known by heart."""


def taught_student(folder: Path, conversations: Sequence[Sequence[Message]]) -> Path:
    """Saves a tiny Llama that says what the assistant says in them. Returns the folder."""
    tokenizer, model = tiny_tokenizer(), tiny_llama(seed=1, spread=0.05)
    lessons = [_lesson(tokenizer, conversation) for conversation in conversations]
    length = max(len(ids) for ids, _ in lessons)
    ids_BT = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in lessons])
    targets_BT = torch.tensor([[*targets, *[-100] * (length - len(targets))] for _, targets in lessons])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(NUM_STEPS):
        logits_BTV = model(ids_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten())
        if loss < KNOWN_LOSS:
            save_tiny(folder, model)
            tokenizer.chat_template = TEMPLATE
            tokenizer.save_pretrained(folder)
            return folder
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        optimizer.step()
    raise AssertionError(f"after {NUM_STEPS} steps the student does not know its lessons: {float(loss)}")


def _lesson(tokenizer: PreTrainedTokenizerFast, conversation: Sequence[Message]) -> tuple[list[int], list[int]]:
    """The ids of a conversation, and the same with -100 where nothing is to be learnt."""
    ids: list[int] = []
    targets: list[int] = []
    for role, content in conversation:
        opening = tokenizer(f"<|im_start|>{role}\n", add_special_tokens=False)["input_ids"]
        text = tokenizer(f"{content}<|im_end|>", add_special_tokens=False)["input_ids"]
        end = tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids += [*opening, *text, *end]
        kept = text if role == "assistant" else [-100] * len(text)
        targets += [*[-100] * len(opening), *kept, *[-100] * len(end)]
    return ids, targets
