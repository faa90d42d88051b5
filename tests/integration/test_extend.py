"""What docs/extend.md tells people to write, written into files and trained with, as they would."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from preceptor_client import Chat, extend
from preceptor_client.cli import main
from preceptor_client.errors import PreceptorError
from preceptor_client.extend import StepDone
from preceptor_client.train.record.metrics import MetricRow, read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from preceptor_client.train.teacher.scorer import Scorer

from tests.integration.servers import RunningServer
from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.tiny import save_tiny_model, tiny_student

PAGE = (Path(__file__).parents[2] / "docs/extend.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:50051"
MAX_LINES = 20
Settings = dict[str, Any]  # Any: the leaves are whatever TOML holds
Broken = Callable[[ModuleType], None]
SEEN: list[StepDone] = []


class Seen:
    """A hook of the tests: keeps what each step was made of."""

    def on_step(self, done: StepDone) -> None:
        SEEN.append(done)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page."""

    files: Mapping[str, str]
    settings: Settings
    messages: tuple[str, ...]


@dataclass(kw_only=True)
class Run:
    """A run, and what it left behind."""

    rows: list[MetricRow]
    steps: list[StepDone]
    folder: Path
    scorers: Mapping[str, FakeScorer] = field(default_factory=dict)

    def numbers(self, name: str) -> list[Any]:  # Any: whatever the rows hold
        return [row[name] for row in self.rows if row["kind"] == "step"]


def sections() -> dict[str, Section]:
    found = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        blocks: dict[str, list[str]] = {"python": [], "toml": [], "text": []}
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            blocks[language].append(block)
        settings: Settings = {}
        for block in blocks["toml"]:
            settings = merged(settings, tomllib.loads(block))
        found[title] = Section(
            files={block.splitlines()[0].removeprefix("# "): block for block in blocks["python"]},
            settings=settings,
            messages=tuple(line.removesuffix(" ...") for block in blocks["text"] for line in block.splitlines()),
        )
    return found


def merged(under: Settings, over: Settings) -> Settings:
    both = {key: merged(under[key], over[key]) for key in under.keys() & over if isinstance(under[key], dict)}
    return {**under, **over, **both}


SECTIONS = sections()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a user who wrote every file of the page."""
    files = {name: text for section in SECTIONS.values() for name, text in section.files.items()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name, words in (("train", ["red", "green", "blue", "grey", "pink"]), ("heldout", ["gold", "lime"])):
        lines = [{"prompt": f"Say {word}", "answer": word} for word in words]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    SEEN.clear()
    _forget(files)  # other pages name their files alike
    yield tmp_path
    _forget(files)


def _forget(files: Mapping[str, str]) -> None:
    importlib.invalidate_caches()
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


def base(folder: Path) -> Settings:
    student = folder / "student"
    return {
        "student": {"model": str(student if student.exists() else save_tiny_model(student))},
        "teacher": {"address": ADDRESS, "top_k": 8},
        "data": {"train": "train.jsonl"},
        "rollout": {"prompts_per_step": 3, "max_new_tokens": 6, "responses_per_prompt": 2, "batch_size": 4},
        "optimizer": {"learning_rate": 1e-3, "micro_batch_size": 2},
        "evaluation": {"max_new_tokens": 4},
        "run": {"directory": str(folder / "run"), "num_steps": 2, "sample_rollouts": 0},
    }


def run_with(folder: Path, changes: Settings, *, scorers: Mapping[str, FakeScorer] | None = None) -> Run:
    """Trains two steps; teachers are in this process unless they are a class of the page."""
    own = {"kind": f"{__name__}:Seen"}
    settings = merged(base(folder), {**changes, "hooks": [*changes.get("hooks", []), own]})
    config = RunConfig.model_validate(settings)
    if scorers is None:
        seeds = {name: seed for seed, name in enumerate(config.all_teachers(), start=1)}
        scorers = {name: FakeScorer(tiny_student(seed=seed)) for name, seed in seeds.items()}
    given: Mapping[str, Scorer] = scorers
    train(config, scorer=given)
    return Run(rows=read_rows(config.run.directory / "metrics.jsonl"), steps=list(SEEN), folder=folder, scorers=scorers)


def all_scored(run: Run) -> list[extend.ScoredEpisode]:
    scored = [one for done in run.steps for one in done.scored]
    assert scored
    return scored


def check_objective(run: Run) -> None:
    plain = run_with(run.folder, {"run": {"directory": str(run.folder / "plain")}})
    assert run.numbers("loss")[0] == pytest.approx(2 * plain.numbers("loss")[0], rel=1e-5)


def check_support(run: Run) -> None:
    for one in all_scored(run):
        q_NK = np.exp(one.scores.support_logprobs_NK.astype(np.float64))
        assert one.support.sizes_N.tolist() == (q_NK >= 0.5 * q_NK[:, :1]).sum(axis=1).tolist()
    sizes = {size for one in all_scored(run) for size in one.support.sizes_N.tolist()}
    assert 2 <= min(sizes) < 8  # of the teacher's 8; one token alone is left out, as for every lsm


def check_weights(run: Run) -> None:
    for done, number in zip(run.steps, run.numbers("num_weighted_positions"), strict=True):
        likely = [np.exp(one.scores.sampled_logprobs_N) < 0.01 for one in done.scored]
        assert number == sum(is_weighted_N.sum() for is_weighted_N in likely)
        assert 0 < number < sum(len(is_weighted_N) for is_weighted_N in likely)


def letters(run: Run, one: extend.ScoredEpisode) -> float:
    text = run.steps[0].student.decode(one.episode.response_ids)
    return sum(letter.isalpha() for letter in text) / max(1, len(text))


def check_reward(run: Run) -> None:
    rewards = [one.episode.total_reward for one in all_scored(run)]
    assert rewards == pytest.approx([2 * letters(run, one) for one in all_scored(run)])
    assert len(set(rewards)) > 1


def check_credit(run: Run) -> None:
    scored = run.steps[0].scored
    rewards, sizes = [letters(run, one) for one in scored], [len(one.scores.positions_N) for one in scored]
    gains = [reward - sum(rewards) / len(rewards) for reward in rewards]
    # The student is the one that wrote, so that every ratio is 1: the loss is minus the mean of the advantages.
    expected = -0.5 * sum(gain * size for gain, size in zip(gains, sizes, strict=True)) / sum(sizes)
    assert run.numbers("credit_loss")[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-4


def check_extrapolation(run: Run) -> None:
    fixed = {"objective": {"extrapolation": 1.25}, "run": {"directory": str(run.folder / "fixed")}}
    assert run.numbers("loss")[0] == pytest.approx(run_with(run.folder, fixed).numbers("loss")[0], rel=1e-5)


def check_engine(run: Run) -> None:
    texts = [run.steps[0].student.decode(one.episode.response_ids) for one in all_scored(run)]
    assert texts == [one.episode.example.answer for one in all_scored(run)]
    assert len(texts) == 6


def check_environment(run: Run) -> None:
    for one in all_scored(run):
        assert [segment.is_policy for segment in one.episode.segments][:2] == [True, False]
        prompt = run.steps[0].student.decode(one.episode.prompt_ids)
        assert "Guess a number between 1 and 20." in prompt


def check_prompt(run: Run) -> None:
    calls = [call for scorer in run.scorers.values() for call in scorer.calls]
    assert calls
    for call in calls:
        assert isinstance(call.prompt, Chat)
        first, last = call.prompt.messages
        assert str(last.content) == f"Say {str(first.content).removeprefix('Answer: ')}"


def check_tasks(run: Run) -> None:
    assert [[one.task for one in done.scored].count("tools") for done in run.steps] == [4, 4]
    for one in all_scored(run):
        if one.task == "tools":
            assert [answer.name for answer in one.by_teacher] == ["code"]
            assert len(one.episode.response_ids) <= 4
            continue
        first, second = one.by_teacher
        sure_MN = np.exp([first.scores.support_logprobs_NK[:, 0], second.scores.support_logprobs_NK[:, 0]])
        np.testing.assert_allclose(first.shares_N, sure_MN[0] / sure_MN.sum(axis=0), rtol=1e-5)
    temperatures = {call.options.get("temperature") for call in run.scorers["code"].calls}
    assert temperatures == {1.0, 0.7}


def check_metric(run: Run) -> None:
    rows = [row for row in run.rows if row["kind"] == "heldout"]
    assert [row["step"] for row in rows] == [0, 2]
    for row in rows:
        answers: Any = row["answers"]
        assert row["mean_characters"] == sum(len(answer["answer"]) for answer in answers) / len(answers)


def check_hook(run: Run) -> None:
    expected = [f"{step}/2: {loss:.6f}" for step, loss in enumerate(run.numbers("loss"), start=1)]
    assert (run.folder / "steps.txt").read_text().splitlines() == expected


CHECKS: Mapping[str, Callable[[Run], None]] = {
    "Objective": check_objective,
    "Support": check_support,
    "Weights": check_weights,
    "Reward": check_reward,
    "Credit": check_credit,
    "Extrapolation": check_extrapolation,
    "Rollout engine": check_engine,
    "Environment": check_environment,
    "The teacher's prompt": check_prompt,
    "Several tasks and teachers": check_tasks,
    "Metric": check_metric,
    "Hook": check_hook,
}
"""The part of each section was used, by its effect. That of "Teacher" has a test of its own, with a server."""


@pytest.mark.parametrize("title", CHECKS)
def test_the_part_of_a_section_does_what_the_page_says(title: str, folder: Path) -> None:
    CHECKS[title](run_with(folder, SECTIONS[title].settings))


def test_a_teacher_of_ones_own_is_asked_and_closed(folder: Path, fake_server: RunningServer) -> None:
    settings = merged(SECTIONS["Teacher"].settings, {})
    settings["teacher"]["options"]["address"] = fake_server.address
    settings = merged(base(folder), settings)
    del settings["teacher"]["address"]
    noting = importlib.import_module("my_teachers").Noting
    closed: list[object] = []
    close = noting.close

    def closing(teacher: object) -> None:
        closed.append(teacher)
        close(teacher)

    noting.close = closing
    train(RunConfig.model_validate(settings))
    assert (folder / "asked.txt").read_text().split() == [
        word for step in (1, 2) for slot in range(3) for word in (f"step-{step}/{slot}", "2")
    ]
    assert len(closed) == 1


def method(name: str, gives: Callable[..., object]) -> Broken:
    def put_in_place(module: ModuleType) -> None:
        (part,) = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        setattr(part, name, gives)

    return put_in_place


def without(name: str) -> Broken:
    def removed(module: ModuleType) -> None:
        (part,) = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        delattr(part, name)

    return removed


def nothing_to_ask(module: ModuleType) -> None:
    module.Noting = type("Noting", (), {})  # type: ignore[attr-defined]  # a user's module


def raises(self: object, done: StepDone) -> None:
    raise RuntimeError("the disk is full")


async def higher(self: object, text: str) -> str:
    return "higher"


def not_numbers(self: object, scored: list[extend.ScoredEpisode], at: object) -> list[np.ndarray[Any, Any]]:
    return [np.full(len(one.scores.positions_N), np.nan) for one in scored]


BROKEN: Mapping[str, Broken] = {
    "Objective": method("loss", lambda self, at: at.student_sampled_logprobs_N.detach()),
    "Support": without("needs_student_tokens"),
    "Weights": method("weigh", not_numbers),
    "Reward": method("reward", lambda self, episode, text: float("nan")),
    "Credit": method("credit", not_numbers),
    "Extrapolation": method("strength", not_numbers),
    "Rollout engine": method("run", lambda self, request, *, policy, on_bad: iter(["an episode"])),
    "Environment": method("step", higher),
    "Teacher": nothing_to_ask,
    "The teacher's prompt": method("prompt", lambda self, example, episodes, texts: None),
    "Several tasks and teachers": method(
        "shares", lambda self, episode, answers: {name: 0 * one.sampled_logprobs_N for name, one in answers.items()}
    ),
    "Metric": method("measure", lambda self, answers: {"accuracy": 1.0}),
    "Hook": method("on_step", raises),
}


@pytest.mark.parametrize("title", BROKEN)
def test_a_part_that_does_not_do_is_told_as_the_page_shows(title: str, folder: Path) -> None:
    section = SECTIONS[title]
    (name,) = section.files
    BROKEN[title](importlib.import_module(name.removesuffix(".py")))
    (message,) = section.messages
    with pytest.raises((PreceptorError, ValueError)) as caught:
        run_with(folder, section.settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "objective"),
    list(
        enumerate(
            [
                {"kind": "my_loses:Scaled"},
                {"kind": "my_losses:Scale"},
                {"kind": "Scaled"},
                {"support": "my_losses:Scaled"},
                {"kind": "my_losses:Scaled", "options": {"scales": 2.0}},
                {"kind": "my_losses:Scaled", "options": {"scale": "two"}},
            ]
        )
    ),
)
def test_a_mistake_in_the_settings_is_told_as_the_page_shows(line: int, objective: Settings, folder: Path) -> None:
    message = SECTIONS["What is checked"].messages[line]
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.model_validate(merged(base(folder), {"objective": objective}))


def test_an_unknown_teacher_is_told_as_the_page_shows(folder: Path) -> None:
    settings = merged(SECTIONS["Several tasks and teachers"].settings, {"tasks": {"contracts": {"teachers": ["tax"]}}})
    (message,) = re.findall(r"is named: `(.*?)`", PAGE)
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.model_validate(merged(base(folder), settings))


def test_every_class_is_short_and_every_section_is_tested() -> None:
    untested = set(SECTIONS) - set(CHECKS) - {"What is checked", "Teacher"}
    assert (untested, set(BROKEN) - {"Teacher"}) == (set(), set(CHECKS))
    for section in SECTIONS.values():
        for text in section.files.values():
            lines = text[text.index("class ") :].splitlines()
            assert len(lines) < MAX_LINES, text


def test_the_table_leads_to_every_section() -> None:
    anchors = {title.lower().replace(" ", "-").replace("'", "") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) == anchors - {"what-is-checked"}


def test_help_names_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    assert "docs/extend.md" in capsys.readouterr().out
