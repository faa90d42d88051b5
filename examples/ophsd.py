"""OPHSD (arXiv 2605.08741): the student learns to write at once what it would write with a harness around it.

The teacher is the untrained student, served, which reads the question with what a harness found out about it. The
harness here is small: it has the answers checked by the rewards, and shows the teacher the shortest one that was right.
It runs at each step, on what the student has just written; where nothing was right, both read the same. The paper takes
the reverse KL over the whole vocabulary (`full_vocabulary`, where the server's limits.max_top_k allows that).

Settings:

    teacher.prompt = { kind = "ophsd:Harness", options = { hint = "A right answer is:" } }
    objective.kind = "tail_bucket"
    rollout.responses_per_prompt = 4
    rewards = [{ kind = "match" }]
"""

from collections.abc import Sequence

from preceptor_client.extend import ChatMessage, Episode, Example, ExamplePrompt


class Harness:
    def __init__(self, *, hint: str) -> None:
        self.hint = hint

    def prompt(self, example: Example, episodes: Sequence[Episode], texts: Sequence[str]) -> ExamplePrompt:
        right = [text for one, text in zip(episodes, texts, strict=True) if one.total_reward]
        if not right:
            return example.prompt
        finding = f"\n\n{self.hint} {min(right, key=len)}\n\n"
        if isinstance(example.prompt, str):
            return example.prompt + finding
        *before, last = example.prompt
        return (*before, ChatMessage(role=last.role, content=last.content + finding))
