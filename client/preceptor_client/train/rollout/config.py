"""Settings of the rollouts: how the student writes. Imports no torch."""

from __future__ import annotations

from typing import Literal

from preceptor.settings import Section
from pydantic import Field, JsonValue

OnRewrittenHistory = Literal["rerender", "mask"]


class RolloutConfig(Section):
    """How the student writes."""

    prompts_per_step: int = Field(ge=1)
    """Prompts per optimizer step."""
    max_new_tokens: int = Field(ge=1)
    """Longest response (of a conversation: longest turn of the student), in tokens; longer ones are cut, and trained on
    up to there."""
    responses_per_prompt: int = Field(1, ge=1)
    """Responses to each prompt of a step."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus of the student's distribution that tokens are drawn from."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divides the student's logits before tokens are drawn."""
    batch_size: int = Field(16, ge=1)
    """Responses that are written at once; the teacher scores one batch while the next is written."""
    engine: str = "student"
    """What rolls out: "student", the student in training itself; "jsonl", a file; "openai", a teacher behind OpenAI's
    API; "mixed", several of them; or package.module:Name of an engine of your own. docs/rollouts.md describes them."""
    engine_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of the engine: the keyword arguments of its constructor."""
    max_turns: int = Field(8, ge=1)
    """Most turns of the student in an episode with an environment."""
    max_episode_tokens: int = Field(0, ge=0)
    """Longest conversation with an environment, its prompt included, in tokens; 0 = as the student's context."""
    environment_timeout_seconds: float = Field(60.0, gt=0)
    """Longest time that an environment may take to be made and begin, for each turn, and to close. Its episode fails
    after that."""
    on_rewritten_history: OnRewrittenHistory = "rerender"
    """What to do where the chat template would write earlier turns otherwise than the student wrote or read them (it
    drops thinking, strips white space): rerender goes on from the rewritten conversation, in a further part of the
    episode; mask goes on from the student's own tokens, and trains on none of those that follow."""
