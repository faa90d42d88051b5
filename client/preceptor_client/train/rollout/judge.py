"""Reward "judge": a model behind OpenAI's API gives an episode a number by a rubric. Knows nothing of the rubric."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, JsonValue

from preceptor_client.train.data.examples import prompt_text
from preceptor_client.train.rollout.chat_server import ChatServer
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.types import ChatMessage

_PLACES = re.compile(r"\{(prompt|response|answer|task)\}")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")


class Judge:
    """Asks a model for a number about each response, as ROPD (arXiv 2605.07396) does with rubrics.

    The judge reads what the student wrote, and a student may learn to write for the judge: say in `prompt` what is an
    order and what is to be judged, and look at rollouts with high rewards.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        prompt: str,
        lowest: float = 0.0,
        highest: float = 10.0,
        temperature: Annotated[float, Field(ge=0)] = 0.0,
        max_tokens: Annotated[int, Field(ge=1)] = 256,
        timeout_seconds: Annotated[float, Field(gt=0)] = 45.0,
        api_key_variable: str = "",
    ) -> None:
        """`prompt` holds {response}, and may hold {prompt}, {answer} and {task}; it asks for a number from `lowest` to
        `highest` at the end of the reply. The reward is that number, scaled to 0 ... 1. Keep `timeout_seconds` below
        that of the reward itself."""
        if "{response}" not in prompt:
            raise ValueError("prompt does not hold {response}: put it where the judge shall read the student's text")
        if not lowest < highest:
            raise ValueError(f"lowest={lowest} is not below highest={highest}")
        self._server = ChatServer(
            base_url, model=model, timeout_seconds=timeout_seconds, api_key_variable=api_key_variable
        )
        self._prompt = prompt
        self._lowest, self._highest = lowest, highest
        self._options: dict[str, JsonValue] = {"temperature": temperature, "max_tokens": max_tokens}

    async def reward(self, episode: Episode, text: str) -> float:
        """As `Reward.reward`. Raises ValueError where the reply holds no number in the range."""
        values = {
            "prompt": prompt_text(episode.example.prompt),
            "response": text,
            "answer": " or ".join(episode.example.answers),
            "task": episode.task,
        }
        # In one pass: a response that holds {answer} stays as it is.
        question = _PLACES.sub(lambda match: values[match[1]], self._prompt)
        reply = await self._server.complete((ChatMessage("user", question),), options=self._options)
        number = _last_number(reply.text)
        if number is None or not self._lowest <= number <= self._highest:
            raise ValueError(
                f"the judge gave no number from {self._lowest:g} to {self._highest:g}; its reply ends with "
                f"{reply.text[-60:]!r}"
            )
        return (number - self._lowest) / (self._highest - self._lowest)


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1]) if numbers else None
