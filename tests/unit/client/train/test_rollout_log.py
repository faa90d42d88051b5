from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.record.rollout_log import (
    RolloutLog,
    RolloutRow,
    TokenRow,
    is_kept,
    read_rollouts,
    rollout_rows,
)
from preceptor_client.train.rollout.episode import single_turn
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import ResponseScores

LOG_HALF = math.log(0.5)


def _decode(ids: Sequence[int]) -> str:
    return "".join(f"[{token}]" for token in ids)


def _scored(positions: Sequence[int], *, status: Sequence[PositionStatus], slot: int = 0) -> ScoredEpisode:
    """Three tokens; at each scored position the teacher gives token 10 a half, token 11 a quarter, and no other."""
    num = len(positions)
    rollout = single_turn(
        example=Example(index=0, prompt="?", task="maths"),
        slot=slot,
        prompt_ids=(1, 2),
        response_ids=(10, 11, 12),
        finish_reason="length",
        student=StudentView(logprobs_T=np.array([-0.25, -0.5, -1.0], np.float32), entropies_T=np.zeros(3, np.float32)),
    )
    teacher_T = np.array([LOG_HALF, math.log(0.25), -np.inf], np.float32)
    scores = ResponseScores(
        status_T=np.array(status, np.uint8),
        positions_N=np.array(positions, np.int64),
        support_ids_NK=np.tile(np.array([10, 11, 10], np.uint16), (num, 1)),
        support_logprobs_NK=np.tile(np.array([LOG_HALF, math.log(0.25), -np.inf], np.float32), (num, 1)),
        sampled_logprobs_N=teacher_T[list(positions)],
        log_tail_mass_N=np.full(num, math.log(0.25), np.float32),
        entropies_N=np.ones(num, np.float32),
    )
    return ScoredEpisode(episode=rollout, scores=scores)


def _columns(losses: Sequence[float]) -> StudentColumns:
    losses_N = np.array(losses, np.float32)
    return StudentColumns(losses_N=losses_N, masses_N=losses_N, overlaps_N=losses_N)


def _row(step: int) -> RolloutRow:
    token: TokenRow = {"text": "\u2028</script>", "id": 1, "status": "ok", "student_logprob": None}
    return {"step": step, "slot": 0, "task": "", "prompt": "p", "finish_reason": "stop", "tokens": [token]}


def test_a_row_holds_both_sides_of_every_token() -> None:
    status = (PositionStatus.OK, PositionStatus.MISALIGNED, PositionStatus.OK)
    (row,) = rollout_rows(
        3, [_scored((0, 2), status=status)], [_columns((0.125, np.nan))], decode=_decode, num_rollouts=4
    )
    first, second, third = row.pop("tokens")  # type: ignore[misc]  # the rest is compared whole
    assert row == {"step": 3, "slot": 0, "task": "maths", "prompt": "[1][2]", "finish_reason": "length"}
    support = [("[10]", 0.5), ("[11]", 0.25)]
    assert first == {
        "text": "[10]",
        "id": 10,
        "status": "ok",
        "student_logprob": -0.25,
        "teacher_logprob": pytest.approx(LOG_HALF, rel=1e-4),
        "signal": pytest.approx(LOG_HALF + 0.25, rel=1e-4),
        "loss": 0.125,
        "support": support,
        "tail_mass": 0.25,
    }
    assert second == {"text": "[11]", "id": 11, "status": "misaligned", "student_logprob": -0.5}
    # The teacher cannot write the token, and the loss was not measured.
    assert {name: third[name] for name in ("teacher_logprob", "signal", "loss")} == dict.fromkeys(
        ("teacher_logprob", "signal", "loss")
    )
    assert third["support"] == support


def test_a_row_holds_what_it_takes_to_ask_the_teacher_again() -> None:
    one = replace(
        _scored((0,), status=[PositionStatus.OK] * 3), teacher="large", teacher_prompt_ids=np.array([70_000, 5])
    )
    (row,) = rollout_rows(1, [one], [_columns((0.5,))], decode=_decode, num_rollouts=1)
    assert (row["teacher"], row["teacher_prompt_ids"]) == ("large", [70_000, 5])
    assert json.loads(json.dumps(row))["teacher_prompt_ids"] == [70_000, 5]


def test_a_position_whose_support_has_one_token_says_so() -> None:
    (row,) = rollout_rows(
        1, [_scored((0,), status=[PositionStatus.OK] * 3)], [_columns((0.5,))], decode=_decode, num_rollouts=1
    )
    assert [token["status"] for token in row["tokens"]] == ["ok", "single_support", "single_support"]
    assert ["support" in token for token in row["tokens"]] == [True, False, False]


def test_the_first_rollouts_with_a_score_are_chosen() -> None:
    special, fine = [PositionStatus.SPECIAL] * 3, [PositionStatus.OK] * 3
    scored = [
        _scored((), status=special, slot=0),
        _scored((0,), status=fine, slot=1),
        _scored((1,), status=fine, slot=2),
        _scored((2,), status=fine, slot=3),
    ]
    columns = [_columns(()), _columns((1.0,)), _columns((2.0,)), _columns((3.0,))]
    rows = rollout_rows(1, scored, columns, decode=_decode, num_rollouts=2)
    assert [row["slot"] for row in rows] == [1, 2]
    assert [token["loss"] for row in rows for token in row["tokens"] if "loss" in token] == [1.0, 2.0]
    assert rollout_rows(1, scored, columns, decode=_decode, num_rollouts=0) == []
    assert rollout_rows(1, scored[:1], columns[:1], decode=_decode, num_rollouts=2) == []


def test_no_mass_outside_the_support_is_zero() -> None:
    one = _scored((0,), status=[PositionStatus.OK] * 3)
    one.scores.log_tail_mass_N[:] = -np.inf
    (row,) = rollout_rows(1, [one], [_columns((0.0,))], decode=_decode, num_rollouts=1)
    assert row["tokens"][0]["tail_mass"] == 0.0


def test_rows_survive_the_file(tmp_path: Path) -> None:
    status = [PositionStatus.OK] * 3
    rows = rollout_rows(
        1, [_scored((0, 1, 2), status=status)], [_columns((np.nan, 1, 2))], decode=_decode, num_rollouts=1
    )
    with RolloutLog(tmp_path, step=0) as log:
        log.write(rows)
        assert read_rollouts(tmp_path / "rollouts.jsonl") == json.loads(json.dumps(rows))


def test_opening_at_a_step_drops_the_rows_after_it(tmp_path: Path) -> None:
    with RolloutLog(tmp_path, step=0) as log:
        log.write([_row(1), _row(1)])
        log.write([_row(3), _row(4)])
    with RolloutLog(tmp_path, step=3) as log:
        log.write([_row(5)])
    assert [row["step"] for row in read_rollouts(tmp_path / "rollouts.jsonl")] == [1, 1, 3, 5]
    assert read_rollouts(tmp_path / "rollouts.jsonl")[0] == _row(1)
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts.jsonl"]


def test_torn_last_line_is_dropped_and_a_torn_other_line_reported(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(_row(1)) + '\n{"step": 2, "to')
    assert read_rollouts(path) == [_row(1)]
    with RolloutLog(tmp_path, step=2) as log:
        log.write([_row(2)])
    assert read_rollouts(path) == [_row(1), _row(2)]
    path.write_text('{"step": 2, "to\n' + json.dumps(_row(1)) + "\n")
    with pytest.raises(RunDirectoryError, match=r"rollouts\.jsonl:1: not a rollout"):
        read_rollouts(path)


def test_a_run_without_rollouts_has_none(tmp_path: Path) -> None:
    assert read_rollouts(tmp_path / "rollouts.jsonl") == []


@pytest.mark.parametrize(
    ("num_steps", "kept"),
    [
        (1, [1]),
        (2, [1, 2]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (15, [1, 3, 5, 7, 9, 11, 13, 15]),
        (701, [1, 101, 201, 301, 401, 501, 601, 701]),
    ],
)
def test_about_eight_steps_are_kept_the_first_and_the_last_among_them(num_steps: int, kept: list[int]) -> None:
    assert [step for step in range(num_steps + 2) if is_kept(step, num_steps)] == kept
