"""What a run with several tasks and teachers leaves behind, and what its report shows of it."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.commands.outcome_view import heldout_lines
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.record.rollout_log import RolloutRow, read_rollouts, rollout_rows
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.report import OtherPage, RunData, read_run, write_comparison, write_report
from preceptor_client.train.report.links import links_of
from preceptor_client.train.report.voices import Voice, voice_of
from preceptor_client.train.teacher.agreement import alignment_tables, read_agreed, save_agreement, save_agreements
from preceptor_client.train.teacher.mixture import rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]  # it has no types

from tests.unit.client.train.fake_scorer import agreement_with
from tests.unit.client.train.reports import CONFIG, Json, curve, embedded, figures, step_row, write_run
from tests.unit.client.train.several import (
    CALLS,
    CONTRACT,
    ENVIRONMENT_WROTE,
    Made,
    columns_of,
    heldout_rows,
    made,
    write_several,
)
from tests.unit.client.train.tiny import tiny_student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_several(tmp_path_factory.mktemp("several"))
    write_report(folder / "report.html", run=read_run(folder).summary)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> RunData:
    return read_run(folder)


@pytest.fixture(scope="module")
def parts() -> Made:
    return made()


def _rollout(parts: Made) -> RolloutRow:
    """Of three turns, with an environment between."""
    one = parts.scored(parts.episode(CALLS, task="tools", slot=0, reward=0.5), by=("code",))
    (row,) = rollout_rows(1, [one], columns_of([one], step=1), decode=parts.student.decode_all, num_rollouts=1)
    return row


def request_in(href: str) -> Json:
    text = href.split("/#request=")[1]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


# -- the files


def test_several_teachers_are_in_one_file_by_their_names_and_one_is_there_as_without_names(tmp_path: Path) -> None:
    one = agreement_with(tiny_student())
    other = replace(one, teacher=replace(one.teacher, name="jurist"))
    save_agreements(tmp_path, {"law": other, "code": one})
    assert list(json.loads((tmp_path / "alignment.json").read_text())) == ["teachers"]
    assert {name: agreed["teacher"] for name, agreed in read_agreed(tmp_path).items()} == {
        "law": "jurist",
        "code": "tiny",
    }
    assert ("segmentation", "mask") in alignment_tables(tmp_path)["law"]
    assert ("segmentation", "mask") in alignment_tables(tmp_path)["code"]
    save_agreements(tmp_path, {"law": other})
    several = (tmp_path / "alignment.json").read_bytes()
    save_agreement(tmp_path, other)
    assert (tmp_path / "alignment.json").read_bytes() == several
    assert [name for name, _ in alignment_tables(tmp_path)[""]][:2] == ["vocabularies", "segmentation"]


@pytest.mark.parametrize("text", ['{"teachers": 1}', '{"teachers": {"law": {}}}', '{"teachers": {"law": 1}}', "[1]"])
def test_a_file_of_another_shape_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "alignment.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"alignment\.json cannot be read"):
        alignment_tables(tmp_path)


def test_rows_of_a_task_are_told_apart_and_named_in_tensorboard(tmp_path: Path) -> None:
    with Metrics(tmp_path, step=0) as metrics:
        metrics.write({"kind": "heldout", "step": 1, "task": "law", "loss": 0.5})
        metrics.write({"kind": "heldout", "step": 1, "task": "code", "loss": 0.25, "pass_rate": 0.75})
        metrics.write({"kind": "heldout", "step": 2, "loss": 2.0})
        assert metrics.has(kind="heldout", step=1, task="law")
        assert not metrics.has(kind="heldout", step=1, task="maths")
        assert not metrics.has(kind="heldout", step=1)
        assert metrics.has(kind="heldout", step=2)
        assert not metrics.has(kind="heldout", step=2, task="law")
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    values = {tag: [event.value for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert values == {
        "heldout/law/loss": [0.5],
        "heldout/code/loss": [0.25],
        "heldout/code/pass_rate": [0.75],
        "heldout/loss": [2.0],
    }


def test_tokens_of_an_environment_say_so_and_have_no_number_of_the_student(parts: Made) -> None:
    row = _rollout(parts)
    texts = {True: "", False: ""}
    for token in row["tokens"]:
        is_own = token["status"] != "environment"
        texts[is_own] += token["text"]
        assert ("student_logprob" in token) == is_own
        assert ("support" in token) == is_own
    assert texts[False] == "".join(text for who, text in CALLS if who == ENVIRONMENT_WROTE)
    assert texts[True] == "".join(text for who, text in CALLS if who != ENVIRONMENT_WROTE)
    assert (row["reward"], row["run_task"], "part" in row) == (0.5, "tools", False)


def test_masked_tokens_of_the_student_say_so(parts: Made) -> None:
    episode = parts.episode(CALLS, task="tools", slot=0, reward=0.5)
    first, *rest = episode.segments
    episode = replace(episode, segments=(replace(first, is_masked=True), *rest), part=2)
    one = parts.scored(episode, by=("code",))
    (row,) = rollout_rows(1, [one], columns_of([one], step=1), decode=parts.student.decode_all, num_rollouts=1)
    statuses = [token["status"] for token in row["tokens"]]
    assert statuses[: len(first.ids)] == ["masked"] * len(first.ids)
    assert statuses[-1] == "ok"
    assert "student_logprob" in row["tokens"][0]
    assert row["part"] == 2


def test_each_teacher_of_a_token_is_there_beside_their_mixture(parts: Made) -> None:
    one = parts.scored(parts.episode(CONTRACT, task="contracts", slot=0, reward=1.0), by=("law", "code"))
    (row,) = rollout_rows(1, [one], columns_of([one], step=1), decode=parts.student.decode_all, num_rollouts=1)
    assert {name: (asked["teacher"], asked["teacher_prompt_ids"][-1]) for name, asked in row["teachers"].items()} == {
        "law": ("law-served", 3),
        "code": ("code-served", 4),
    }
    for token in row["tokens"]:
        teacher_logprob = token["teacher_logprob"]
        assert teacher_logprob is not None
        probability = 0.0
        for said in token["teachers"].values():
            assert said["logprob"] is not None
            probability += said["weight"] * np.exp(said["logprob"])
        assert np.exp(teacher_logprob) == pytest.approx(probability, rel=1e-3)  # five digits of a logprob


def test_a_position_that_another_teacher_did_not_score_says_why(parts: Made) -> None:
    one = parts.scored(parts.episode(CONTRACT, task="contracts", slot=0, reward=1.0), by=("law", "code"))
    later = np.arange(len(one.scores.positions_N)) > 0
    law, code = (replace(answer, scores=rows_of(answer.scores, later)) for answer in one.by_teacher)
    status_T = code.scores.status_T.copy()
    status_T[0] = PositionStatus.MISALIGNED
    code = replace(code, scores=replace(code.scores, status_T=status_T))
    one = replace(one, scores=rows_of(one.scores, later), support=one.support.rows(later), by_teacher=(law, code))
    (row,) = rollout_rows(1, [one], columns_of([one], step=1), decode=parts.student.decode_all, num_rollouts=1)
    assert [token["status"] for token in row["tokens"][:2]] == ["misaligned", "ok"]


def test_the_rollouts_kept_are_spread_over_the_tasks(parts: Made) -> None:
    whole = parts.scored(parts.episode(CONTRACT, task="contracts", slot=0, reward=1.0), by=("law",))
    scored = [
        replace(whole, episode=replace(whole.episode, slot=slot), task=task)
        for slot, task in enumerate(["a", "a", "a", "b", "b", "c"])
    ]

    def kept(number: int) -> list[int]:
        rows = rollout_rows(1, scored, columns_of(scored, step=1), decode=parts.student.decode_all, num_rollouts=number)
        return [row["slot"] for row in rows]

    assert [kept(number) for number in (1, 2, 3, 4, 5, 9)] == [
        [0],
        [0, 3],
        [0, 3, 5],
        [0, 1, 3, 5],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


# -- the summary


def _summary(directory: Path, *rows: MetricRow) -> RunSummary:
    return summarise(write_run(directory, rows), model_folder=directory)


def test_outcomes_are_by_task_and_summed_up(run: RunData) -> None:
    contracts, tools = run.summary.tasks
    assert (contracts.name, contracts.before, contracts.after, contracts.total) == ("contracts", 1, 3, 4)
    assert (contracts.loss_before, contracts.loss_after, contracts.reward_before) == (2.0, 1.0, None)
    assert (tools.name, tools.total, tools.loss_before) == ("tools", None, None)
    assert (tools.reward_before, tools.reward_after) == (0.25, 0.75)
    assert (run.summary.heldout_before, run.summary.heldout_after, run.summary.heldout_total) == (1, 3, 4)
    assert [sample.task for sample in run.summary.samples] == ["contracts"]


def test_totals_are_sums_of_answers_and_means_of_losses(tmp_path: Path) -> None:
    def row(step: int, task: str, **numbers: float | None) -> MetricRow:
        return {"kind": "heldout", "step": step, "task": task, "num_examples": 4, "answers": [], **numbers}

    summary = _summary(
        tmp_path,
        row(0, "a", num_correct=1, mean_answer_length=2.0, loss=3.0),
        row(0, "b", num_correct=2, mean_answer_length=6.0, loss=1.0),
        row(0, "c", loss=None),
        {**row(0, "a", num_correct=4), "kind": "heldout_teacher"},
        step_row(1),
        row(1, "a", num_correct=3, mean_answer_length=3.0, loss=2.0),
        row(1, "b", num_correct=4, mean_answer_length=5.0, loss=0.5),
        row(1, "c", loss=9.0),
    )
    assert (summary.heldout_before, summary.heldout_after, summary.heldout_total) == (3, 7, 8)
    # Task c has no loss before.
    assert (summary.heldout_loss_before, summary.heldout_loss_after) == (2.0, 1.25)
    assert (summary.answer_length_before, summary.answer_length_after) == (4.0, 4.0)
    # Of the others it was not measured.
    assert (summary.tasks[0].teacher, summary.heldout_teacher) == (4, None)


def test_an_example_whose_teacher_prompt_was_left_out_has_no_teachers_answer(tmp_path: Path) -> None:
    def row(kind: str, step: int, *prompts: str) -> MetricRow:
        answers: list[dict[str, str | bool]] = [
            {"prompt": prompt, "expected": "x", "answer": f"{kind} {prompt}", "is_correct": False} for prompt in prompts
        ]
        numbers = {"num_examples": len(prompts), "num_correct": 0, "accuracy": 0.0, "mean_answer_length": 2.0}
        return {"kind": kind, "step": step, "answers": answers, **numbers}

    summary = _summary(
        tmp_path,
        row("heldout", 0, "a", "b", "c"),
        row("heldout_teacher", 0, "another", "a", "c"),
        step_row(1),
        row("heldout", 1, "a", "b", "c"),
    )
    assert [one.teacher for one in summary.samples] == ["heldout_teacher a", None, "heldout_teacher c"]
    write_report(tmp_path / "report.html", run=summary)
    assert '<td class="answer">–</td>' in (tmp_path / "report.html").read_text()


def test_closing_lines_name_the_tasks_and_then_all(run: RunData, tmp_path: Path) -> None:
    assert heldout_lines(run.summary) == [
        "held-out answers of contracts: 1 of 4 right before, 3 after",
        "held-out loss of contracts: 2.0000 -> 1.0000",
        "held-out reward of tools: 0.2500 -> 0.7500",
        "held-out answers of all tasks: 1 of 4 right before, 3 after",
        "held-out loss, mean over tasks: 2.0000 -> 1.0000",
        "held-out reward, mean over tasks: 0.2500 -> 0.7500",
    ]
    unnamed = [{name: value for name, value in row.items() if name != "task"} for row in heldout_rows(0)[:1]]
    assert heldout_lines(_summary(tmp_path / "one", *unnamed, step_row(1))) == [
        "held-out answers: 1 of 4 right before, 1 after",
        "held-out loss: 2.0000 -> 2.0000",
    ]
    assert len(heldout_lines(_summary(tmp_path / "named", heldout_rows(0)[0], step_row(1)))) == 2


# -- the report


def test_held_out_measurements_have_a_curve_for_each_task(folder: Path) -> None:
    found = figures(folder / "report.html")
    assert curve(found["Held-out loss"], "contracts") == [(0, 2.0), (4, 1.0)]
    assert curve(found["Held-out accuracy"], "contracts") == [(0, 0.25), (4, 0.75)]
    assert curve(found["Held-out reward"], "tools") == [(0, 0.25), (4, 0.75)]
    assert curve(found["Held-out calls_per_episode"], "tools") == [(0, 2.5), (4, 2.5)]
    assert [trace["line"]["color"] for trace in found["Held-out reward"]["traces"]] == ["--c1"]


def test_what_the_teachers_prompts_reach_is_a_level_in_the_colour_of_its_task(tmp_path: Path) -> None:
    def row(kind: str, step: int, task: str, accuracy: float) -> MetricRow:
        return {"kind": kind, "step": step, "task": task, "accuracy": accuracy}

    rows = [
        row("heldout", 0, "a", 0.25),
        row("heldout", 0, "b", 0.5),
        row("heldout_teacher", 0, "b", 0.75),
        step_row(2),
        row("heldout", 2, "a", 0.5),
        row("heldout", 2, "b", 0.625),
    ]
    write_report(tmp_path / "report.html", run=_summary(tmp_path, *rows))
    figure = figures(tmp_path / "report.html")["Held-out accuracy"]
    assert curve(figure, "b: untrained, with the teacher's prompts") == [(0, 0.75), (2, 0.75)]
    assert [(trace["name"][0], trace["line"]["color"]) for trace in figure["traces"]] == [
        ("a", "--c0"),
        ("b", "--c1"),
        ("b", "--c1"),
    ]


def test_rewards_turns_and_teachers_are_plotted(folder: Path) -> None:
    found = figures(folder / "report.html")
    assert curve(found["Reward"], "mean") == [(1, 0.375), (2, 0.5), (3, 0.625), (4, 0.75)]
    assert curve(found["Reward"], "standard deviation")[1] == (2, 0.0)
    assert curve(found["Reward by task"], "contracts") == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert found["Signal by turn"]["layout"]["xaxis"]["ticktext"] == ["1", "2", "3-4"]
    assert [trace["name"] for trace in found["Signal by teacher"]["traces"]] == ["code", "law"]
    assert curve(found["Weight by teacher"], "law") == [(step, 0.75) for step in range(1, 5)]
    titles = re.findall(r"<h2>([^<]*)</h2>", (folder / "report.html").read_text())
    assert [title for title in titles if title in ("Turns", "Tasks", "Teachers")] == ["Turns", "Tasks", "Teachers"]


def test_both_teachers_are_named_and_have_a_table_of_what_was_agreed(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "taught by law at 127.0.0.1:1 and code at 127.0.0.1:2" in page
    agreed = page.split("Tokens of student and teachers")[1].split("</section>")[0]
    assert re.findall(r"<h3>(\w+)</h3>", agreed) == ["law", "code"]
    assert agreed.count("ids correspond one to one") == 2
    settings = page.split('<section id="settings">')[1]
    assert "<code>tasks.contracts.teacher.top_k</code></td><td><code>16</code>" in settings
    assert "<code>teachers.law.page</code>" in settings


def test_each_rollout_links_to_the_page_of_each_of_its_teachers(folder: Path, run: RunData) -> None:
    contract, tools = links_of(run)[:2]
    law, code = contract, contract.others[0]
    assert (law.teacher, code.teacher, len(contract.others)) == ("law", "code", 1)
    assert law.href.startswith("http://127.0.0.1:8080/#request=")
    assert code.href.startswith("http://127.0.0.1:8081/#request=")
    assert [request_in(link.href)["prompt"]["teacher_ids"][-1] for link in (law, code)] == [3, 4]
    assert (tools.teacher, tools.others) == ("code", ())
    # The task has a setting of its own; else the teacher; else what teachers have in common.
    assert [request_in(link.href)["top_k"] for link in (law, code, tools)] == [16, 16, 4]
    assert embedded(folder / "report.html", "links")[0]["others"][0]["teacher"] == "code"
    # What an environment wrote has no logprob of the student's.
    assert "student_logprobs" not in request_in(tools.href)["responses"][0]


def test_a_teacher_without_a_page_has_no_link_and_another_page_stands_in_for_all(folder: Path, run: RunData) -> None:
    settings = {**run.settings, "teachers": {**run.settings["teachers"], "law": {"address": "127.0.0.1:1"}}}
    law = links_of(replace(run, settings=settings))[0]
    assert (law.href, law.title) == ("", "teacher 'law' scored this, and has no page that is known here")
    assert law.others[0].href
    law = links_of(run, instead=OtherPage(url="http://elsewhere:9"))[0]
    assert [link.href.split("/#")[0] for link in (law, *law.others)] == ["http://elsewhere:9"] * 2


def test_a_page_that_is_no_address_is_named_by_its_teacher(run: RunData) -> None:
    settings = {**run.settings, "teachers": {**run.settings["teachers"], "law": {"page": "javascript:alert(1)//"}}}
    with pytest.raises(RunDirectoryError, match=r"teachers\.law\.page"):
        links_of(replace(run, settings=settings))


def test_a_rollout_without_teachers_names_is_linked_to_the_one_that_its_server_names(tmp_path: Path) -> None:
    config = CONFIG.replace("[run]", '[teachers]\nlaw = {page = "http://127.0.0.1:8080"}\n[run]')
    write_run(tmp_path, [step_row(1)], config=config)
    (tmp_path / "rollouts.jsonl").write_text(
        json.dumps(
            {
                "step": 1,
                "slot": 0,
                "task": "",
                "prompt": "p",
                "finish_reason": "stop",
                "tokens": [{"text": "a", "id": 5, "status": "ok", "student_logprob": -1.0}],
                "teacher": "tiny",
                "teacher_prompt_ids": [1],
            }
        )
    )
    save_agreements(tmp_path, {"law": agreement_with(tiny_student())})
    [link] = links_of(read_run(tmp_path))
    assert (link.teacher, request_in(link.href)["teacher"]) == ("law", "tiny")


def test_the_answer_shown_is_said_to_be_the_mixtures_or_the_firsts(run: RunData) -> None:
    contract, tools = run.rollouts[:2]
    divergences = {"tasks": {"contracts": {"combine": "divergences"}}}
    both = ("law", "code")
    mixture = Voice(words="The mixture of law and code", is_mixture=True, teachers=both)
    first = Voice(words="law, the first of the teachers,", is_mixture=False, teachers=both)
    assert voice_of(contract, settings=run.settings) == mixture
    assert voice_of(contract, settings=divergences) == first
    assert voice_of(tools, settings=run.settings) == Voice(words="code", is_mixture=False, teachers=("code",))
    unnamed = tools.copy()
    del unnamed["teachers"]
    assert voice_of(unnamed, settings={}) == Voice(words="The teacher", is_mixture=False, teachers=())


def test_runs_side_by_side_have_a_figure_for_each_task(folder: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", [step_row(1), *heldout_rows(4)])
    write_comparison(tmp_path / "comparison.html", runs=[read_run(folder), read_run(other)])
    found = figures(tmp_path / "comparison.html")
    assert [len(found[title]["traces"]) for title in ("Held-out loss, contracts", "Held-out reward, tools")] == [2, 2]
    assert "Held-out loss" not in found
    assert curve(found["Held-out loss, contracts"], "other") == [(4, 1.0)]


def test_the_first_figure_of_a_plot_has_its_caption_where_the_first_task_lacks_the_measure(
    folder: Path, tmp_path: Path
) -> None:
    write_comparison(tmp_path / "comparison.html", runs=[read_run(folder)])
    page = (tmp_path / "comparison.html").read_text()
    drawn = re.findall(r"<figure><h3>([^<]*)</h3>.*?(<figcaption>[^<]*</figcaption>)?</figure>", page)
    captions = dict(drawn)
    assert "Held-out reward, contracts" not in captions
    assert "Mean reward of the held-out examples" in captions["Held-out reward, tools"]
    assert len([caption for caption in captions.values() if "Mean reward of" in caption]) == 1


def test_the_page_embeds_the_rollouts_as_they_are_in_the_file(folder: Path) -> None:
    rows = json.loads(json.dumps(read_rollouts(folder / "rollouts.jsonl")))
    assert embedded(folder / "report.html", "rollouts") == rows
    assert {row["run_task"] for row in rows} == {"contracts", "tools"}
