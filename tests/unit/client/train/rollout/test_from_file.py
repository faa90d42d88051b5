from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.record.episode_log import EPISODES_FILE, EpisodeLog
from preceptor_client.train.rollout.episode import Episode, Segment
from preceptor_client.train.rollout.from_file import EpisodesFromFile
from preceptor_client.types import ChatMessage

from tests.unit.client.train.rollout.fake_policy import FakePolicy, OnBadList, batches_of, request_of, texts_of
from tests.unit.client.train.rollouts import student_view

END = 2
CHAT = (ChatMessage("user", "capital of Norway?"),)
EXAMPLES = [
    Example(index=0, prompt="say red"),
    Example(index=1, prompt="say blue"),
    Example(index=2, prompt=CHAT),
]


def _file(folder: Path, rows: Sequence[dict[str, object] | str]) -> str:
    path = folder / "episodes.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def _ids(policy: FakePolicy, text: str) -> tuple[int, ...]:
    return tuple(policy.tokenizer(text)["input_ids"])


def test_lines_are_matched_by_prompt_by_messages_by_index_and_by_ids(tmp_path: Path) -> None:
    policy = FakePolicy()
    messages = [{"role": "user", "content": "capital of Norway?"}]
    rows: list[dict[str, object]] = [
        {"prompt": messages, "response": "Oslo"},
        {"example": 1, "response": "blue"},
        {"prompt_ids": list(policy.encode("say red", example=EXAMPLES[0])), "response": "red"},
        {"prompt": "say green", "response": "of no example"},
        {"prompt": "say red", "example": 7, "response": "of another example with this prompt"},
    ]
    batches = batches_of(EpisodesFromFile(_file(tmp_path, rows)), request_of(EXAMPLES, first_slot=3), policy)
    assert texts_of(batches, policy) == [["red", "blue", "Oslo"]]
    assert [episode.slot for episode in batches[0]] == [3, 4, 5]
    assert [episode.example for episode in batches[0]] == EXAMPLES
    assert batches[0][2].prompt_ids == policy.encode(CHAT, example=EXAMPLES[2])


def test_tokens_of_a_text_are_the_students_and_end_with_its_end_token_unless_it_was_cut(tmp_path: Path) -> None:
    policy = FakePolicy()
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "response": "red"},
        {"prompt": "say red", "response": "re", "finish_reason": "length"},
        {"prompt": "say red", "response": "red<|im_end|>"},
        {"prompt": "say red", "response_ids": [50, 60, END]},
        {"prompt": "say red", "response_ids": [50, 60]},
    ]
    ((*episodes,),) = batches_of(EpisodesFromFile(_file(tmp_path, rows), take="all"), request_of(EXAMPLES[:1]), policy)
    red = _ids(policy, "red")
    assert [episode.response_ids for episode in episodes] == [
        (*red, END), red[:2], (*red, END), (50, 60, END), (50, 60)
    ]  # fmt: skip
    assert [episode.finish_reason for episode in episodes] == ["stop", "length", "stop", "stop", "length"]
    assert [episode.sample for episode in episodes] == [0, 1, 2, 3, 4]
    assert all(episode.is_policy_T.all() for episode in episodes)


def test_logprobs_are_the_students_own_at_its_version_unless_the_file_has_some(tmp_path: Path) -> None:
    policy = FakePolicy()
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "response_ids": [50, 60, END]},
        {"prompt": "say red", "segments": [{"ids": [50, 60], "is_policy": True, "logprobs": [-0.25, -3]}]},
    ]
    request = request_of(EXAMPLES[:1], step=5)
    ((without, given),) = batches_of(EpisodesFromFile(_file(tmp_path, rows), take="all"), request, policy)
    prompt = policy.encode("say red", example=EXAMPLES[0])
    dense_TV = policy.logprobs_TV(prompt, [50, 60, END])
    expected = [float(dense_TV[place, token]) for place, token in enumerate((50, 60, END))]
    assert without.student.logprobs_T == pytest.approx(expected, abs=1e-5)
    assert given.student.logprobs_T.tolist() == [-0.25, -3.0]
    # Entropies are in no file.
    assert given.student.entropies_T == pytest.approx(without.student.entropies_T[:2], abs=1e-5)
    assert (without.policy_version, given.policy_version) == (4, 4)


def test_segments_of_others_are_context_and_rewards_stay_on_their_segments(tmp_path: Path) -> None:
    policy = FakePolicy()
    segments = [
        {"text": "look", "is_policy": True},
        {"text": "nothing here", "is_policy": False},
        {"ids": [50, END], "is_policy": True, "is_masked": True},
        {"text": "go", "is_policy": True},
    ]
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "segments": segments, "reward": [0.5, None, None, -1], "info": {"moves": 2, "x": [0.5]}}
    ]
    ((episode,),) = batches_of(EpisodesFromFile(_file(tmp_path, rows)), request_of(EXAMPLES[:1]), policy)
    mask = [True] * 4 + [False] * 12 + [True] * 2 + [True] * 3
    assert episode.is_policy_T.tolist() == mask
    assert episode.score_mask_T.tolist() == [True] * 4 + [False] * 14 + [True] * 3
    assert (episode.reward, episode.total_reward) == ((0.5, None, None, -1.0), -0.5)
    assert episode.info == {"moves": 2, "x": [0.5]}
    assert np.isnan(episode.student.logprobs_T[4:16]).all()
    dense_TV = policy.logprobs_TV(episode.prompt_ids, episode.response_ids)
    # The later turn is read behind the whole history.
    assert episode.student.logprobs_T[-1] == pytest.approx(float(dense_TV[-1, END]), abs=1e-5)


def test_draws_are_a_function_of_seed_and_step_and_all_of_them_come_up(tmp_path: Path) -> None:
    policy = FakePolicy()
    rows: list[dict[str, object]] = [{"prompt": "say red", "response": f"red {number}"} for number in range(5)]
    engine = EpisodesFromFile(_file(tmp_path, rows))

    def drawn(*, step: int, seed: int = 0) -> list[str]:
        request = request_of(EXAMPLES[:1], step=step, seed=seed, num_responses=2)
        return [text for batch in texts_of(batches_of(engine, request, policy), policy) for text in batch]

    assert drawn(step=1) == drawn(step=1)
    assert len(set(drawn(step=1))) == 2
    assert {text for step in range(30) for text in drawn(step=step)} == {f"red {number}" for number in range(5)}
    assert [drawn(step=step) for step in range(6)] != [drawn(step=step, seed=1) for step in range(6)]
    first = EpisodesFromFile(_file(tmp_path, rows), take="first")
    assert texts_of(batches_of(first, request_of(EXAMPLES[:1], num_responses=2), policy), policy) == [
        ["red 0", "red 1"]
    ]


def test_batches_hold_whole_slots_of_at_most_the_batch_size(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"example": index, "response": f"{index}{number}"} for index in range(3) for number in range(2)
    ]
    engine = EpisodesFromFile(_file(tmp_path, rows), take="all")
    batches = batches_of(engine, request_of(EXAMPLES, batch_size=5), FakePolicy())
    assert [[episode.slot for episode in batch] for batch in batches] == [[0, 0, 1, 1], [2, 2]]


def test_too_few_responses_or_none_cost_the_example_and_say_what_to_change(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "response": "red"},
        {"prompt": "say blue", "response": "blue"},
        {"prompt": "say blue", "response": "navy"},
    ]
    bad = OnBadList()
    batches = batches_of(
        EpisodesFromFile(_file(tmp_path, rows)), request_of(EXAMPLES, num_responses=2), FakePolicy(), bad
    )
    assert [[episode.slot for episode in batch] for batch in batches] == [[1, 1]]
    assert len(bad.errors) == 2
    assert "example 0: " in bad.texts[0]
    assert 'responses_per_prompt is 2: lower it, or set take = "all"' in bad.texts[0]
    assert "example 2: " in bad.texts[1]
    assert "holds no response to it" in bad.texts[1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ('{"prompt": "say red"}', "needs one of response, response_ids, segments, and has none"),
        ('{"response": "a"}', "says not what it answers"),
        ('{"prompt": "p", "response": "a", "response_ids": [1]}', "has response and response_ids"),
        ('{"prompt": "p", "respones": "a"}', "did you mean 'response'"),
        ('{"prompt": 3, "response": "a"}', "'prompt' must be a text"),
        ('{"prompt": "p", "response_ids": [1, -2]}', "'response_ids' must hold whole numbers from 0; it holds -2"),
        ('{"prompt": "p", "response_ids": [true]}', "must hold whole numbers"),
        ('{"prompt": "p", "response": "\\ud800"}', "half a character"),
        ('{"prompt": "p", "response": "a", "reward": 1e999}', "'reward' must be a finite number"),
        ('{"prompt": "p", "response": "a", "reward": [1, 2]}', "2 entries for 1 segments"),
        ('{"prompt": "p", "response": "a", "finish_reason": "done"}', "must be one of stop, length, turns"),
        ('{"prompt": "p", "response": "a", "part": 1}', "'part' is given without 'sample'"),
        ('{"prompt": "p", "segments": []}', "'segments' must be a list"),
        ('{"prompt": "p", "segments": [{"text": "a"}]}', "segment 0 needs 'is_policy'"),
        (
            '{"prompt": "p", "segments": [{"ids": [1], "text": "a", "is_policy": true}]}',
            "'ids' or 'text', and not both",
        ),
        (
            '{"prompt": "p", "segments": [{"ids": [1, 2], "is_policy": true, "logprobs": [-1]}]}',
            "segment 0: 'logprobs' must be a list of 2 numbers",
        ),
        (
            '{"prompt": "p", "segments": [{"text": "a", "is_policy": true, "logprobs": [-1]}]}',
            "'logprobs' are for 'ids'",
        ),
        ('{"prompt": "p", "segments": [{"ids": [1], "is_policy": true, "logprobs": [0.7]}]}', "at most 0"),
    ],
)
def test_bad_line_is_named_once_and_the_others_are_used(tmp_path: Path, line: str, why: str) -> None:
    path = _file(tmp_path, [{"prompt": "say red", "response": "red"}, line, {"prompt": "say red", "response": "rot"}])
    engine, policy, bad = EpisodesFromFile(path, take="all"), FakePolicy(), OnBadList()
    assert texts_of(batches_of(engine, request_of(EXAMPLES[:1]), policy, bad), policy) == [["red", "rot"]]
    (error,) = bad.errors
    assert isinstance(error, InvalidDataError)
    assert error.where == f"{path}:2"
    assert why in error.why
    batches_of(engine, request_of(EXAMPLES[:1], step=2), policy, bad)
    assert len(bad.errors) == 1


def test_episode_that_does_not_fit_the_student_costs_itself_alone(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "response_ids": [5, 300]},
        {"prompt": "say red", "segments": [{"text": "x" * 300, "is_policy": False}, {"text": "a", "is_policy": True}]},
        {"prompt": "say red", "segments": [{"text": "x", "is_policy": False}]},
        {"prompt": "say red", "response_ids": []},
        {"prompt": "say red", "response": "red"},
    ]
    path = _file(tmp_path, rows)
    policy, bad = FakePolicy(), OnBadList()
    batches = batches_of(EpisodesFromFile(path, take="all"), request_of(EXAMPLES[:1]), policy, bad)
    assert texts_of(batches, policy) == [["red"]]
    whys = ["holds id 300, and the student's ids are in [0, 259)", "and the student reads 256", "nothing to train on"]
    for number, (why, text) in enumerate(zip([*whys, "has no tokens"], bad.texts, strict=True), start=1):
        assert text.startswith(f"{path}:{number}: ")
        assert why in text


def test_response_beyond_max_new_tokens_is_cut_there(tmp_path: Path) -> None:
    segments = [
        {"ids": [60], "is_policy": True},
        {"ids": [61, 62, 63, 64], "is_policy": False},
        {"ids": [65, 66, 67], "is_policy": True, "logprobs": [-1, -2, -3]},
        {"ids": [68], "is_policy": True},
    ]
    rows: list[dict[str, object]] = [
        {"prompt": "say red", "response": "reddish"},
        {"prompt": "say red", "segments": segments, "reward": [1, None, 2, 4]},
    ]
    engine = EpisodesFromFile(_file(tmp_path, rows), take="all")
    policy = FakePolicy()
    ((cut, cut_later),) = batches_of(engine, request_of(EXAMPLES[:1], max_new_tokens=2), policy)
    assert (policy.decode(cut.response_ids), cut.finish_reason) == ("re", "length")
    assert cut_later.response_ids == (60, 61, 62, 63, 64, 65, 66)
    assert (cut_later.finish_reason, cut_later.reward) == ("length", (1.0, None, 2.0))
    assert cut_later.student.logprobs_T[-2:].tolist() == [-1.0, -2.0]


def test_file_that_is_not_there_or_empty_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="no such file"):
        EpisodesFromFile(str(tmp_path / "none.jsonl"))
    with pytest.raises(InvalidDataError, match="holds no episode"):
        EpisodesFromFile(_file(tmp_path, []))


def _saved_episodes() -> list[Episode]:
    def written(*ids: int) -> Segment:
        view = student_view(len(ids), logprob=-0.1)
        view.logprobs_T[0] = np.float32(-1 / 3)
        return Segment(ids=ids, is_policy=True, student=view)

    first = Episode(
        example=EXAMPLES[0], slot=0, sample=0, prompt_ids=(9, 8), segments=(written(50, 60, END),),
        finish_reason="stop", reward=0.1, policy_version=3, info={"won": True, "odd": {1, }},
    )  # fmt: skip
    parts = [
        Episode(
            example=EXAMPLES[2], slot=1, sample=1, part=part, prompt_ids=(7, 7 + part),
            segments=(written(40, END), Segment(ids=(41, 42), is_policy=False), written(43)),
            finish_reason="turns", reward=(None, None, float(part)), messages=CHAT * part,
        )
        for part in (0, 1)
    ]  # fmt: skip
    return [first, *parts]


def test_saved_episodes_come_back_as_they_were(tmp_path: Path) -> None:
    saved = _saved_episodes()
    with EpisodeLog(tmp_path, step=0) as log:
        log.write(4, saved)
        log.write(5, saved[:1])
    engine = EpisodesFromFile(str(tmp_path / EPISODES_FILE), take="step")
    (batch,) = batches_of(engine, request_of([EXAMPLES[0], EXAMPLES[2]], step=4), FakePolicy())
    for episode, before in zip(batch, saved, strict=True):
        for name in ("example", "slot", "part", "prompt_ids", "segments", "reward", "finish_reason", "messages"):
            assert getattr(episode, name) == getattr(before, name), name
        assert np.array_equal(episode.student.logprobs_T, before.student.logprobs_T, equal_nan=True)
    # Samples count from 0 among those that are taken; parts of one share it.
    assert [episode.sample for episode in batch] == [0, 0, 0]
    assert (batch[0].policy_version, batch[0].info) == (3, {"won": True, "odd": "{1}"})
    bad = OnBadList()
    assert batches_of(engine, request_of([EXAMPLES[2]], step=5), FakePolicy(), bad) == []
    assert "saved at step 5" in bad.texts[0]


def test_log_of_a_resumed_run_has_no_doubles(tmp_path: Path) -> None:
    for step in (0, 1):
        with EpisodeLog(tmp_path, step=step) as log:
            log.write(1 + step, _saved_episodes()[:1])
            log.write(2 + step, _saved_episodes()[:1])
    rows = [json.loads(line) for line in (tmp_path / EPISODES_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
