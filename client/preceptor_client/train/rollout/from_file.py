"""Engine "jsonl": takes episodes from a file instead of letting the student write. Knows nothing of who wrote them.

To choose this engine is the explicit wish to train on text that the student did not write: tokens with `is_policy` true
are trained on, whoever wrote them. That is off-policy distillation.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.data.reading import json_lines
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.rollout.drafts import Draft, episodes_of
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.episode_rows import EpisodeRow, parse_episode

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutRequest

Take = Literal["draw", "first", "all", "step"]
_Parts = list[EpisodeRow]
"""The lines of one episode, by part."""


class EpisodesFromFile:
    """Gives each example the responses that a JSONL file holds for it.

    A line belongs to every example that agrees with all that it says of `prompt` (equal texts, or equal messages) and
    of `example` (the index among the rows of the run's data). `prompt_ids` are compared only where it gives neither;
    beside them they are what the student reads. Lines with one `sample` (and one `step`) are parts of one episode.
    Logprobs of the file are kept as those of whoever drew the tokens; where there are none, the student's own are
    computed, as its entropies always are.
    """

    num_top_ids = 0
    """Likeliest tokens of the student that this engine needs in `Policy.view`."""

    def __init__(self, path: str, *, take: Take = "draw") -> None:
        """`take`, of the responses to one prompt: "draw" rollout.responses_per_prompt of them anew at each step, or the
        "first" so many of the file, or "all", or those that were saved at the same "step" of a run, to repeat it."""
        self._path = path
        self._take = take
        self._by_prompt: dict[ExamplePrompt, list[EpisodeRow]] = defaultdict(list)
        self._by_index: dict[int, list[EpisodeRow]] = defaultdict(list)
        self._by_ids: dict[tuple[int, ...], list[EpisodeRow]] = defaultdict(list)
        self._bad_lines: list[InvalidDataError] = []
        self._read()

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """As `RolloutEngine.run`. Lines that cannot be read go to `on_bad` before the first batch of the first step."""
        while self._bad_lines:
            on_bad(self._bad_lines.pop(0))
        drafts: list[Draft] = []
        for slot, example in enumerate(request.examples, start=request.first_slot):
            try:
                found = self._drafts(example, slot=slot, request=request, policy=policy)
            except InvalidDataError as error:
                on_bad(error)
                continue
            if drafts and len(drafts) + len(found) > request.config.batch_size:
                yield episodes_of(drafts, policy=policy, max_new_tokens=request.config.max_new_tokens, on_bad=on_bad)
                drafts = []
            drafts += found
        if drafts:
            yield episodes_of(drafts, policy=policy, max_new_tokens=request.config.max_new_tokens, on_bad=on_bad)

    def _read(self) -> None:
        for line in json_lines(Path(self._path).expanduser()):
            try:
                row = parse_episode(line.fields(), index=line.index, where=line.where)
            except InvalidDataError as error:
                self._bad_lines.append(InvalidDataError(error.why, where=line.where))
                continue
            if row.prompt is not None:
                self._by_prompt[row.prompt].append(row)
            elif row.example is not None:
                self._by_index[row.example].append(row)
            else:
                self._by_ids[row.prompt_ids or ()].append(row)
        if not (self._by_prompt or self._by_index or self._by_ids or self._bad_lines):
            raise InvalidDataError(f"{self._path}: holds no episode")

    def _drafts(self, example: Example, *, slot: int, request: RolloutRequest, policy: Policy) -> list[Draft]:
        encoded = policy.encode(example.prompt, example=example)
        episodes = self._taken(_as_episodes(self._rows(example, ids=encoded)), example=example, request=request)
        return [
            Draft(
                where=row.where,
                example=example,
                slot=slot,
                sample=sample,
                part=row.part,
                prompt_ids=encoded if row.prompt_ids is None else row.prompt_ids,
                segments=row.segments,
                finish_reason=row.finish_reason,
                reward=row.reward,
                policy_version=max(request.step - 1, 0) if row.policy_version is None else row.policy_version,
                messages=row.messages,
                info=row.info,
            )
            for sample, parts in enumerate(episodes)
            for row in parts
        ]

    def _rows(self, example: Example, *, ids: tuple[int, ...]) -> list[EpisodeRow]:
        of_prompt = [row for row in self._by_prompt.get(example.prompt, ()) if row.example in (None, example.index)]
        found = [*of_prompt, *self._by_index.get(example.index, ()), *self._by_ids.get(ids, ())]
        if not found:
            raise InvalidDataError(f"{self._path} holds no response to it: add one, or take it out", where=example.name)
        return sorted(found, key=lambda row: row.index)

    def _taken(self, episodes: list[_Parts], *, example: Example, request: RolloutRequest) -> Sequence[_Parts]:
        if self._take == "step":
            episodes = [parts for parts in episodes if parts[0].step == request.step]
            if not episodes:
                raise InvalidDataError(
                    f"{self._path} holds no response to it that was saved at step {request.step}", where=example.name
                )
        if self._take in ("all", "step"):
            return episodes
        wanted = request.config.responses_per_prompt
        if len(episodes) < wanted:
            raise InvalidDataError(
                f"{self._path} holds {len(episodes)} response(s) to it, and rollout.responses_per_prompt is {wanted}: "
                'lower it, or set take = "all" in rollout.engine_options',
                where=example.name,
            )
        if self._take == "first":
            return episodes[:wanted]
        draws = random.Random(f"preceptor episodes {request.seed}/{request.step}/{example.index}")
        return [episodes[place] for place in sorted(draws.sample(range(len(episodes)), wanted))]


def _as_episodes(rows: Sequence[EpisodeRow]) -> list[_Parts]:
    """Lines of one step and sample together, in the order of the file."""
    episodes: dict[tuple[object, ...], _Parts] = defaultdict(list)
    for row in rows:
        key = ("line", row.index) if row.sample is None else ("sample", row.step, row.sample)
        episodes[key].append(row)
    return [sorted(parts, key=lambda row: row.part) for parts in episodes.values()]
