"""Training with tools against a real server: only what the student wrote is learnt, and behind exactly what it saw.

A student calls a tool in its first turn and answers in its second. A tap before the server keeps what was asked.
"""

# T = tokens that the student was run on, D = hidden size

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutRequest, Written
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import StudentEngine
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.hooks import RunState, StepDone
from preceptor_client.train.run.train import train
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode
from safetensors.torch import load_file

from tests.integration.servers import RunningServer
from tests.integration.tool_pupil import FORGETS, KEEPS, PLACES, pupil_tokenizer, save_pupil
from tests.integration.wire_tap import AskedToken, WireTap, tapped
from tests.unit.client.train.rollout.chat_templates import token_id

HERE = "tests.integration.test_tool_training"
NUM_STEPS = 3
Ids = tuple[int, ...]


@dataclass(slots=True)
class Seen:
    """What one run's policy was given and wrote, and what its steps derived."""

    written: list[tuple[Ids, Ids]] = field(default_factory=list)
    """The ids before each turn, and the turn."""
    gradients: list[tuple[Ids, torch.Tensor]] = field(default_factory=list)
    """The ids of each forward of training, and the gradient of the step's loss in front of the head, [T, D]: row t
    reaches the logits after token t, and nothing else."""
    scored: list[ScoredEpisode] = field(default_factory=list)
    """Of all steps."""

    def tokens(self, turns: Sequence[tuple[Ids, Ids]] | None = None) -> Counter[AskedToken]:
        """Every token that the student wrote, behind all ids that it saw."""
        return Counter(
            ((*before, *ids[:place]), token)
            for before, ids in (self.written if turns is None else turns)
            for place, token in enumerate(ids)
        )


SEEN: dict[str, Seen] = {}
"""By the name of the run: the parts below are made by the trainer, and are told no more than a name."""


class NotedPolicy:
    """The policy of the run; notes what it is given and what it writes."""

    def __init__(self, policy: Policy, *, seen: Seen) -> None:
        self._policy = policy
        self._seen = seen

    def __getattr__(self, name: str) -> Any:  # Any: whatever else the policy has
        return getattr(self._policy, name)

    def write(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, top_p: float, max_new_tokens: int, seed: int
    ) -> list[Written]:
        written = self._policy.write(
            prompts, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
        )
        self._seen.written += [(tuple(before), one.ids) for before, one in zip(prompts, written, strict=True)]
        return written

    def view(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[StudentView]:
        raise AssertionError("what the student wrote itself has a view")


class NotedEngine:
    """The built-in engine, with a policy that notes."""

    def __init__(self, run: str) -> None:
        self._seen = SEEN[run]

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        return StudentEngine().run(request, policy=NotedPolicy(policy, seen=self._seen), on_bad=on_bad)


class NotedGradients:
    """A hook that listens to the student's last norm, whose output the head is given."""

    def __init__(self, run: str) -> None:
        self._seen = SEEN[run]
        self._ids: Ids = ()

    def on_start(self, at: RunState) -> None:
        body = at.student.model.get_submodule("model")
        body.get_submodule("embed_tokens").register_forward_pre_hook(self._read)
        body.get_submodule("norm").register_forward_hook(self._listen)

    def on_step(self, done: StepDone) -> None:
        self._seen.scored += done.scored

    def _read(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._ids = tuple(inputs[0].flatten().tolist())

    def _listen(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output_1TD: torch.Tensor) -> None:
        ids, gradients = self._ids, self._seen.gradients
        if output_1TD.requires_grad:
            # torch leaves its own method untyped.
            output_1TD.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient_1TD: gradients.append((ids, gradient_1TD[0].clone()))
            )


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pupil(tmp_path_factory.mktemp("pupil"))


@pytest.fixture
def tap(stranger_server: RunningServer) -> Iterator[WireTap]:
    with tapped(stranger_server.address) as tap:
        yield tap


def _train(
    folder: Path,
    *,
    pupil: Path,
    tap: WireTap,
    template: str = KEEPS,
    worth: float = 1.0,
    credit: bool = False,
    on_rewritten_history: str = "rerender",
) -> tuple[Seen, Path]:
    """What was seen, and the folder of the trained model."""
    folder.mkdir(exist_ok=True)
    pupil_tokenizer(template).save_pretrained(folder / "template")
    data = folder / "train.jsonl"
    rows = [{"prompt": [{"role": "user", "content": f"Where is {one}?"}], "answer": one} for one in PLACES]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student = folder / "student"
    student.mkdir()
    for file in [*pupil.glob("*.safetensors"), *pupil.glob("*config.json"), *(folder / "template").iterdir()]:
        (student / file.name).write_bytes(file.read_bytes())
    seen = SEEN[str(folder)] = Seen()
    settings: dict[str, Any] = {
        "student": {"model": str(student)},
        "teacher": {"address": tap.address, "top_k": 8, "segmentation": "as_is", "reproducible": True},
        "data": {"train": str(data)},
        "environment": {"kind": "tests.integration.tool_pupil:Lookup", "options": {"worth": worth}},
        "rollout": {
            "prompts_per_step": 2,
            "responses_per_prompt": 2,
            "max_new_tokens": 60,
            "max_turns": 2,
            "on_rewritten_history": on_rewritten_history,
            "engine": f"{HERE}:NotedEngine",
            "engine_options": {"run": str(folder)},
        },
        "hooks": [{"kind": f"{HERE}:NotedGradients", "options": {"run": str(folder)}}],
        "optimizer": {"learning_rate": 1e-4, "micro_batch_size": 1},
        "run": {"directory": str(folder / "run"), "num_steps": NUM_STEPS, "seed": 3},
    }
    if credit:
        settings["credit"] = {"kind": "teacher_gap"}
    return seen, train(RunConfig.model_validate(settings)).model_folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _derived_tokens(seen: Seen) -> Counter[AskedToken]:
    """Every token with a gradient in front of it that is not exactly 0, behind all ids before it."""
    left = [(*one.episode.prompt_ids, *one.episode.response_ids) for one in seen.scored if len(one.scores.positions_N)]
    found: Counter[AskedToken] = Counter()
    for ids, gradient_TD in seen.gradients:
        # An episode's last token is not among the ids that the student is run on: the last row is in front of it.
        whole = next(one for one in left if one[:-1] == ids)
        left.remove(whole)
        found.update((whole[: row + 1], whole[row + 1]) for row, row_D in enumerate(gradient_TD) if row_D.any())
    assert left == []
    return found


@pytest.mark.parametrize("credit", [False, True], ids=["objective", "objective and credit"])
def test_only_what_the_student_wrote_is_scored_and_has_a_gradient(
    pupil: Path, tap: WireTap, tmp_path: Path, credit: bool
) -> None:
    seen, _ = _train(tmp_path, pupil=pupil, tap=tap, credit=credit)
    episodes = [one.episode for one in seen.scored]
    assert len(episodes) == 4 * NUM_STEPS
    # A call, what the tool said, an answer: else this would show nothing.
    assert sum([segment.is_policy for segment in one.segments] == [True, False, True] for one in episodes) > 8
    assert Counter(tap.asked_tokens()) == seen.tokens()
    assert sum(len(request.responses) for request in tap.requests) == len(episodes)
    assert _derived_tokens(seen) == seen.tokens()


def test_what_the_environment_says_an_episode_is_worth_is_no_part_of_the_divergence(
    pupil: Path, tap: WireTap, tmp_path: Path
) -> None:
    first, first_folder = _train(tmp_path / "first", pupil=pupil, tap=tap, worth=1.0)
    other, other_folder = _train(tmp_path / "other", pupil=pupil, tap=tap, worth=-7.5)
    rewards = [[one.episode.total_reward for one in seen.scored] for seen in (first, other)]
    assert 1.0 in rewards[0]
    assert [-7.5 * (reward or 0) for reward in rewards[0]] == rewards[1]
    ours, theirs, before = _weights(first_folder), _weights(other_folder), _weights(pupil)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(torch.equal(ours[name], before[name]) for name in ours)


def test_a_history_that_is_rendered_anew_is_scored_as_the_student_saw_it(
    pupil: Path, tap: WireTap, tmp_path: Path
) -> None:
    seen, _ = _train(tmp_path, pupil=pupil, tap=tap, template=FORGETS)
    parts = Counter(one.episode.part for one in seen.scored)
    assert parts[0] == 4 * NUM_STEPS
    assert parts[1] > 8
    tokenizer = pupil_tokenizer(FORGETS)
    for one in seen.scored:
        # The second part begins without the thought, and both are what the student was given.
        assert "<think>" not in tokenizer.decode(list(one.episode.prompt_ids))
        assert any(before[: len(one.episode.prompt_ids)] == one.episode.prompt_ids for before, _ in seen.written)
    assert Counter(tap.asked_tokens()) == seen.tokens()
    assert _derived_tokens(seen) == seen.tokens()


def test_a_history_that_is_kept_against_the_template_is_trained_on_no_further(
    pupil: Path, tap: WireTap, tmp_path: Path
) -> None:
    seen, _ = _train(tmp_path, pupil=pupil, tap=tap, template=FORGETS, on_rewritten_history="mask")
    assert {one.episode.part for one in seen.scored} == {0}
    end_of_thought = token_id(pupil_tokenizer(FORGETS), "</think>")
    # The template drops a thought that stands before a turn; what has none is not rewritten.
    kept = [(before, ids) for before, ids in seen.written if end_of_thought not in before]
    rewritten = [(before, ids) for before, ids in seen.written if end_of_thought in before]
    assert len(rewritten) > 8
    for before, _ in rewritten:
        assert any((*earlier, *ids) == before[: len(earlier) + len(ids)] for earlier, ids in kept)
    assert Counter(tap.asked_tokens()) == seen.tokens(kept)
    assert _derived_tokens(seen) == seen.tokens(kept)
