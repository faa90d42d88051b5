"""`preceptor train` with parts that go wrong, against a real server: a line that names the key or the episode.

What is wrong with the settings ends the run before its first step; what is wrong with one episode costs that episode.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preceptor_client.train.record.settings_file import to_toml

from tests.integration.servers import RunningServer
from tests.integration.trainers import RunFiles, TrainHere, run_training

HERE = "tests.integration.bad_parts"
ROOT = Path(__file__).parents[2]
Settings = dict[str, Any]  # Any: the leaves are whatever TOML holds
Run = Callable[[Settings], tuple[int, str]]
"""Exit status, and all that was printed."""


@pytest.fixture
def settings(hf_server: RunningServer, example_student: Path, tmp_path: Path) -> Settings:
    """Each step has the examples of an index 0 or 4, which go wrong where a part goes wrong, and three others."""
    return {
        "student": {"model": str(example_student)},
        "teacher": {"address": hf_server.address, "top_k": 8, "patience_seconds": 30.0},
        "environment": {"kind": f"{HERE}:Talk", "num_examples": 8},
        "rollout": {
            "prompts_per_step": 8,
            "max_new_tokens": 4,
            "max_turns": 3,
            "environment_timeout_seconds": 1.5,
        },
        "optimizer": {"learning_rate": 1e-3},
        "run": {"directory": str(tmp_path / "run"), "num_steps": 2, "save_episodes": True},
    }


@pytest.fixture
def run(tmp_path: Path, train_here: TrainHere) -> Run:
    def run(settings: Settings) -> tuple[int, str]:
        path = tmp_path / "run.toml"
        path.write_text(to_toml(settings))
        return train_here(path)

    return run


def _steps(settings: Settings) -> list[dict[str, Any]]:
    return RunFiles(settings=Path(), directory=Path(settings["run"]["directory"])).steps()


def _trained_examples(settings: Settings) -> dict[int, list[int]]:
    """Of each step, the indices of the examples whose episodes were trained on."""
    found: dict[int, list[int]] = {}
    for line in (Path(settings["run"]["directory"]) / "episodes.jsonl").read_text().splitlines():
        episode = json.loads(line)
        found.setdefault(episode["step"], []).append(episode["example"])
    return {step: sorted(examples) for step, examples in found.items()}


# -- settings


WRONG_CLASSES = [
    ("nowhere:X", "{key}='nowhere:X': there is no module 'nowhere' in "),
    (f"{HERE}:Nope", f"{{key}}='{HERE}:Nope': {HERE} has no 'Nope'"),
    (f"{HERE}:NO_CLASS", f"{{key}}='{HERE}:NO_CLASS': NO_CLASS is not a class but int: name a class"),
    (f"{HERE}:is_bad", f"{{key}}='{HERE}:is_bad': is_bad is not a class but function: name a class"),
    ("nix", "{key}='nix' is not "),
    (f"{HERE}:NoStep", f"{{key}}='{HERE}:NoStep' is not "),
]
PLACES = {
    "environment": "environment.kind",
    "objective": "objective.kind",
    "weights": "weights.kind",
    "credit": "credit.kind",
    "rewards": "rewards[0].kind",
    "hooks": "hooks[0].kind",
}


@pytest.mark.parametrize("section", PLACES)
@pytest.mark.parametrize(("kind", "message"), WRONG_CLASSES)
def test_a_class_that_is_none_is_named_by_its_key(
    settings: Settings, run: Run, section: str, kind: str, message: str
) -> None:
    part = settings["environment"] | {"kind": kind} if section == "environment" else {"kind": kind}
    settings[section] = [part] if section in ("rewards", "hooks") else part
    status, output = run(settings)
    assert status == 2
    assert message.format(key=PLACES[section]) in output
    _assert_is_short(output)
    assert _steps(settings) == []


def _assert_is_short(output: str) -> None:
    """A line; where the settings themselves are refused, between a line before and one behind."""
    lines = output.splitlines()
    assert len(lines) in (1, 3)
    assert lines[0].startswith("preceptor train: ")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"environment": {"kind": f"{HERE}:OtherStep", "num_examples": 8}},
            "OtherStep.step cannot be called as step(self, text: 'str')",
        ),
        (
            {"objective": {"kind": f"{HERE}:OtherLoss"}},
            "OtherLoss.loss cannot be called as loss(self, at: 'Positions')",
        ),
        (
            {"environment": {"kind": f"{HERE}:Talk", "num_examples": 8, "options": {"wrod": "a"}}},
            "environment.options.wrod: Talk has no such option; it has: word, num_turns",
        ),
        (
            {"environment": {"kind": f"{HERE}:Talk", "num_examples": 8, "options": {"num_turns": "two"}}},
            "environment.options.num_turns: Input should be a valid integer",
        ),
        (
            {"environment": {"kind": f"{HERE}:NoRoom", "num_examples": 8}},
            f"environment.kind='{HERE}:NoRoom': its constructor failed: RuntimeError('no licence')",
        ),
        ({"objective": {"kind": "jsd", "options": {"bta": 0.3}}}, "objective.options.bta: Jsd has no such option"),
        ({"objective": {"kind": "jsd", "options": {"beta": "half"}}}, "objective.options.beta: must be a valid number"),
        ({"objective": {"coefficient": 0.0}}, "objective.coefficient=0 without [credit] leaves nothing to learn from"),
        (
            {"credit": {"kind": "grpo", "options": {"epsilon": "none"}}},
            "credit.options.epsilon: must be a valid number",
        ),
        ({"environment": {"kind": f"{HERE}:Talk"}}, "data.train: is not set: name a JSONL file or a dataset, or env"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_part_cannot_take_is_named_by_its_key(
    settings: Settings, run: Run, changes: Settings, message: str
) -> None:
    status, output = run(settings | changes)
    assert (status, message in output) == (2, True), output
    _assert_is_short(output)
    assert _steps(settings) == []


@pytest.mark.parametrize(
    ("task", "status", "message"),
    [
        ({}, 2, "tasks.a.teachers is not set: name one of law, code, or several"),
        ({"teachers": ["maths"]}, 2, "tasks.a.teachers: there is no [teachers.maths]; there are: law, code"),
        ({"teachers": {"law": 0}}, 2, "tasks.a.teachers: a weight must be above 0"),
        (
            {"teachers": ["law", "code"]},
            1,
            "preceptor train: teachers.code: the vocabularies of the student and of teacher 'teacher' are not the same",
        ),
        (
            {"teachers": ["law", "code"], "teacher": {"accept_other_tokenizer": True}},
            1,
            "tasks.a.combine=mixture asks every teacher about the same ids, and those of the student and of teacher "
            "'code' do not correspond one to one",
        ),
    ],
    ids=["none of several", "unknown", "without weight", "unlike vocabularies", "accepted, and cannot be mixed"],
)
def test_teachers_that_do_not_fit_a_task_are_named(
    hf_server: RunningServer,
    stranger_server: RunningServer,
    settings: Settings,
    run: Run,
    task: Settings,
    status: int,
    message: str,
) -> None:
    settings["teacher"] = {"top_k": 8}
    settings["teachers"] = {"law": {"address": hf_server.address}, "code": {"address": stranger_server.address}}
    settings["tasks"] = {"a": task}
    seen, output = run(settings)
    assert (seen, message in output) == (status, True), output
    _assert_is_short(output)
    assert _steps(settings) == []


def test_a_task_whose_only_teacher_has_no_address_is_named(settings: Settings, run: Run) -> None:
    del settings["teacher"]["address"]
    settings["tasks"] = {"a": {}}
    status, output = run(settings)
    assert (status, "teacher.address: is not set: give host:port of the teacher's server" in output) == (2, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"credit": {"kind": f"{HERE}:ShortCredit"}},
            "credit.kind: ShortCredit.credit: credit values of rollout 0 have shape (1,): it has ",
        ),
        (
            {"credit": {"kind": f"{HERE}:NumberAsCredit"}},
            "credit.kind: NumberAsCredit.credit: credit values: a int was given: return a list",
        ),
        (
            {"credit": {"kind": f"{HERE}:RaggedCredit"}},
            "credit.kind: RaggedCredit.credit: credit values: not every array holds numbers",
        ),
        ({"weights": {"kind": f"{HERE}:LazyWeights"}}, "weights.kind: LazyWeights.weigh failed: IndexError('no more')"),
    ],
    ids=["shape", "number", "ragged", "lazy"],
)
def test_what_does_not_fit_the_positions_of_a_step_is_named_by_its_key(
    settings: Settings, run: Run, changes: Settings, message: str
) -> None:
    status, output = run(settings | changes)
    assert (status, message in output) == (2, True), output
    _assert_is_short(output)
    assert _steps(settings) == []


# -- episodes


GOOD, ALL = [1, 2, 3, 5, 6, 7], list(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "Raises"}, "its environment's step() failed: KeyError: 'door'"),
        ({"kind": "Hangs"}, "its environment's step() took longer than rollout.environment_timeout_seconds=1.5"),
        ({"kind": "GivesText"}, "its environment's step() gave 'well': give a Turn, or a tuple"),
        ({"kind": "GivesNaN"}, "its environment's step(): reward is nan: give a finite number or None"),
        ({"reward": "SometimesNaN"}, f"its reward {HERE}:SometimesNaN is nan: return a finite number"),
    ],
    ids=["raises", "hangs", "gives something else", "NaN of an environment", "NaN of a reward"],
)
def test_what_is_wrong_with_an_episode_costs_that_one_and_it_is_named(
    settings: Settings, run: Run, changes: dict[str, str], message: str
) -> None:
    if "kind" in changes:
        settings["environment"]["kind"] = f"{HERE}:{changes['kind']}"
    else:
        settings["rewards"] = [{"kind": f"{HERE}:{changes['reward']}"}]
    status, output = run(settings)
    assert status == 0
    assert [row["num_failed_episodes"] for row in _steps(settings)] == [2, 2]
    assert _trained_examples(settings) == {1: GOOD, 2: GOOD}
    _assert_names_an_episode(output, message)


def _assert_names_an_episode(output: str, message: str) -> None:
    found = [line for line in output.splitlines() if message in line]
    assert len(found) == 2, output
    for step, line in enumerate(found, start=1):
        assert f"step {step} goes on without 2 episode(s); the first: environment example " in line
        assert f"example 0 (episode 0): {message}" in line or f"example 4 (episode 0): {message}" in line
    assert "Traceback" not in output


def test_a_template_that_fails_on_tools_costs_the_episodes_that_have_some(
    settings: Settings, run: Run, example_student: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    for file in example_student.iterdir():
        (student / file.name).write_bytes(file.read_bytes())
    template = student / "chat_template.jinja"
    template.write_text("{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + template.read_text())
    settings["student"]["model"] = str(student)
    settings["environment"]["kind"] = f"{HERE}:WithTool"
    status, output = run(settings)
    assert status == 0
    assert _trained_examples(settings) == {1: GOOD, 2: GOOD}
    _assert_names_an_episode(output, "the student's chat template refuses its messages: TemplateError: no tools here")


def test_an_environment_that_never_ends_is_ended_by_the_limit_of_turns_and_trained_on(
    settings: Settings, run: Run
) -> None:
    settings["environment"]["kind"] = f"{HERE}:NeverEnds"
    status, output = run(settings)
    assert status == 0, output
    assert [row["num_failed_episodes"] for row in _steps(settings)] == [0, 0]
    assert _trained_examples(settings) == {1: ALL, 2: ALL}
    for line in (Path(settings["run"]["directory"]) / "episodes.jsonl").read_text().splitlines():
        episode = json.loads(line)
        assert sum(segment["is_policy"] for segment in episode["segments"]) == 3
        assert episode["finish_reason"] in ("turns", "length")


def test_too_many_failed_episodes_stop_the_run_and_its_last_step_is_saved(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    """The order of the examples is the seed's: a part that fails for half of them fails for all of some steps."""
    settings["environment"]["kind"] = f"{HERE}:RaisesLater"
    settings["rollout"]["prompts_per_step"] = 1
    settings["run"] |= {"num_steps": 8, "seed": 0, "max_failed_share": 0.5}
    status, output = run(settings)
    done = _steps(settings)
    assert 0 < len(done) < 8
    assert status == 1
    step = len(done)
    assert (
        f"preceptor train: step {step + 1}: 100% of the episodes failed, more than run.max_failed_share=0.5; the first"
        in output
    )
    assert "(episode 0): its environment's step() failed: KeyError: 'door'" in output
    folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
    assert f"Step {step} is saved in {folder}; the same command continues from there" in output
    assert folder.is_dir()
    _assert_is_short(output)
    settings["run"]["max_failed_share"] = 1.0
    status, output = run(settings)
    assert status == 0, output
    rows = _steps(settings)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert sum(row["num_failed_episodes"] for row in rows) == 4
    assert [row["is_skipped"] for row in rows] == [row["num_failed_episodes"] == 1 for row in rows]


def test_the_program_itself_says_no_more_than_the_line(settings: Settings, tmp_path: Path) -> None:
    """In a process of its own."""
    settings["environment"]["kind"] = f"{HERE}:NoRoom"
    files = RunFiles(settings=tmp_path / "run.toml", directory=tmp_path / "run")
    files.settings.write_text(to_toml(settings))
    status, output = run_training(files, cwd=ROOT)
    assert status == 2
    assert output.splitlines()[-1] == (
        f"preceptor train: environment.kind='{HERE}:NoRoom': its constructor failed: RuntimeError('no licence')"
    )
    assert "Traceback" not in output
