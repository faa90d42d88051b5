"""Two real teacher servers, for a task each or both for one: learnt from, reported, and equal to a dense oracle."""

# T = tokens of a response, V = vocabulary, K = support size

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.train.record.metrics import MetricRow, read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from transformers import AutoModelForCausalLM

from tests.integration.servers import RunningServer
from tests.integration.trainers import WORDS as ALL_WORDS
from tests.unit.client.train.reports import curve, embedded, figures

TOP_K = 8
SHARES = {"law": 0.7, "code": 0.3}
WORDS = ALL_WORDS[:9]
NUM_STEPS = 24


@pytest.fixture
def folders(tiny_folder: Path, other_tiny_folder: Path, example_student: Path) -> dict[str, Path]:
    """Of the teachers, and of the student under its own name."""
    return {"law": other_tiny_folder, "code": tiny_folder, "student": example_student}


@pytest.fixture
def servers(hf_server: RunningServer, other_hf_server: RunningServer) -> dict[str, RunningServer]:
    return {"law": other_hf_server, "code": hf_server}


def _settings(
    folder: Path, *, student: Path, servers: dict[str, RunningServer], num_steps: int
) -> dict[str, dict[str, Any]]:
    """Without tasks."""
    return {
        "student": {"model": str(student)},
        "teacher": {"top_k": TOP_K, "logprob_dtype": "f32", "segmentation": "as_is"},
        "teachers": {name: {"address": server.address} for name, server in servers.items()},
        "rollout": {"prompts_per_step": 4, "max_new_tokens": 12, "batch_size": 4},
        "optimizer": {"learning_rate": 5e-3, "micro_batch_size": 4},
        "run": {"directory": str(folder / "run"), "num_steps": num_steps, "seed": 7, "save_episodes": True},
    }


def _data(folder: Path, question: str, words: list[str]) -> str:
    path = folder / f"{question.split()[0]}-{words[0]}.jsonl"
    path.write_text("".join(json.dumps({"prompt": question.format(word)}) + "\n" for word in words))
    return str(path)


def _rows(folder: Path, kind: str) -> list[MetricRow]:
    return [row for row in read_rows(folder / "run" / "metrics.jsonl") if row["kind"] == kind]


def test_two_tasks_with_a_teacher_each_alternate_and_both_improve(
    servers: dict[str, RunningServer], folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = _settings(tmp_path, student=folders["student"], servers=servers, num_steps=NUM_STEPS)
    settings["run"]["task_order"] = "alternate"
    settings["evaluation"] = {"loss": True}
    questions = {"contracts": ("May {} leave?", "law"), "tools": ("call({})", "code")}
    settings["tasks"] = {
        task: {
            "teachers": [teacher],
            "data": {"train": _data(tmp_path, question, WORDS[:6]), "heldout": _data(tmp_path, question, WORDS[6:])},
        }
        for task, (question, teacher) in questions.items()
    }
    train(RunConfig.model_validate(settings))

    by_step = [(row["step"], row["group"]) for row in _rows(tmp_path, "breakdown") if row["by"] == "teacher"]
    assert by_step == [(step, "law" if step % 2 else "code") for step in range(1, NUM_STEPS + 1)]
    heldout = {(row["task"], row["step"]): row["loss"] for row in _rows(tmp_path, "heldout")}
    assert set(heldout) == {(task, step) for task in questions for step in (0, NUM_STEPS)}
    for task in questions:
        before, after = heldout[task, 0], heldout[task, NUM_STEPS]
        assert isinstance(before, float)
        assert isinstance(after, float)
        assert after < 0.8 * before
    _assert_report_shows_both(tmp_path / "run" / "report.html", servers)


def _assert_report_shows_both(page: Path, servers: dict[str, RunningServer]) -> None:
    drawn = figures(page)
    for number, name in enumerate(servers):
        points = curve(drawn["Signal by teacher"], name)
        assert [step for step, _ in points] == list(range(1 + number, NUM_STEPS + 1, 2))
        assert all(value < 0 for _, value in points)
    for task in ("contracts", "tools"):
        assert any(task in str(trace.get("name")) for trace in drawn["Loss by task"]["traces"])
    shown = {name for row in embedded(page, "rollouts") for name in row["teachers"]}
    assert shown == set(servers)
    for server in servers.values():
        assert server.address in page.read_text()


Divergence = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _lsm(log_p_TV: torch.Tensor, log_q_TV: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
    log_p_TK, log_q_TK = (one.gather(1, ids_TK).log_softmax(1) for one in (log_p_TV, log_q_TV))
    return (log_p_TK.exp() * (log_p_TK - log_q_TK)).sum(1)


def _tail_bucket(log_p_TV: torch.Tensor, log_q_TV: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
    p_TK, q_TK = (one.exp().gather(1, ids_TK) for one in (log_p_TV, log_q_TV))
    p_tail_T, q_tail_T = 1 - p_TK.sum(1), 1 - q_TK.sum(1)
    return (p_TK * (p_TK / q_TK).log()).sum(1) + p_tail_T * (p_tail_T / q_tail_T).log()


def _response_ids(episode: dict[str, Any]) -> list[int]:
    return [token for segment in episode["segments"] for token in segment["ids"]]


@torch.no_grad()
def _dense_loss(
    episodes: list[dict[str, Any]], *, folders: dict[str, Path], combine: str, divergence: Divergence
) -> float:
    """Mean over the positions, from whole distributions in float64."""
    models = {name: AutoModelForCausalLM.from_pretrained(folder).double() for name, folder in folders.items()}
    losses = []
    for one in episodes:
        prompt, response = one["prompt_ids"], _response_ids(one)
        ids = torch.tensor([prompt + response])
        log_TV = {name: model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(1) for name, model in models.items()}
        tops = {name: log_TV[name].topk(TOP_K).indices for name in SHARES}
        if combine == "mixture":
            mixture_TV = sum((share * log_TV[name].exp() for name, share in SHARES.items()), start=torch.zeros(()))
            losses.append(divergence(log_TV["student"], mixture_TV.log(), tops["law"]))
        else:
            each = [share * divergence(log_TV["student"], log_TV[name], tops[name]) for name, share in SHARES.items()]
            losses.append(torch.stack(each).sum(0))
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("combine", ["mixture", "divergences"])
@pytest.mark.parametrize(("kind", "divergence"), [("lsm", _lsm), ("tail_bucket", _tail_bucket)])
def test_the_first_loss_of_an_ensemble_is_that_of_whole_distributions(
    servers: dict[str, RunningServer],
    folders: dict[str, Path],
    tmp_path: Path,
    combine: str,
    kind: str,
    divergence: Divergence,
) -> None:
    settings = _settings(tmp_path, student=folders["student"], servers=servers, num_steps=1)
    settings["objective"] = {"kind": kind}
    settings["tasks"] = {
        "both": {"teachers": SHARES, "combine": combine, "data": {"train": _data(tmp_path, "Say {}", WORDS)}}
    }
    train(RunConfig.model_validate(settings))
    (row,) = _rows(tmp_path, "step")
    episodes = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 4
    assert row["num_positions"] == sum(len(_response_ids(one)) for one in episodes)
    expected = _dense_loss(episodes, folders=folders, combine=combine, divergence=divergence)
    assert row["loss"] == pytest.approx(expected, rel=1e-4)  # the models and the columns are float32
    assert expected > 0.1
