from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidEpisodeError, InvalidPartError
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout import chat_server
from preceptor_client.train.rollout.choosing import overlap_of
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.episode import Episode, Segment
from preceptor_client.train.rollout.openai import TeacherWrites
from preceptor_client.types import ChatMessage, ToolCall
from pydantic import JsonValue

from tests.unit.client.train.rollout.chat_servers import Answer, Asked, said, serving, unused_port
from tests.unit.client.train.rollout.fake_policy import FakePolicy, OnBadList, batches_of, request_of, texts_of

END = 2
EXAMPLES = [
    Example(index=0, prompt="say red", answer="red"),
    Example(index=1, prompt=(ChatMessage("user", "say blue"),), answer="blue"),
    Example(index=2, prompt="say green", teacher_prompt=(ChatMessage("user", "say GREEN"),), answer="green"),
]


def _teacher(url: str, **options: Any) -> TeacherWrites:  # Any: of the constructor
    return TeacherWrites(url, "big", **options)


def test_candidates_of_each_prompt_come_back_in_the_students_tokens_and_end_with_its_end_token() -> None:
    with serving(lambda asked: said(f"seed {asked['seed'] % 7}")) as server:
        policy = FakePolicy()
        batches = batches_of(_teacher(server.url), request_of(EXAMPLES, first_slot=2, batch_size=4), policy)
    assert [[(one.slot, one.sample) for one in batch] for batch in batches] == [
        [(2, 0), (2, 1), (3, 0), (3, 1)],
        [(4, 0), (4, 1)],
    ]
    for batch in batches:
        for episode in batch:
            assert episode.response_ids[:-1] == tuple(
                policy.tokenizer(policy.decode(episode.response_ids))["input_ids"]
            )
            assert (episode.response_ids[-1], episode.finish_reason) == (END, "stop")
            assert episode.is_policy_T.all()
            dense_TV = policy.logprobs_TV(episode.prompt_ids, episode.response_ids)
            assert episode.student.logprobs_T[-1] == pytest.approx(float(dense_TV[-1, END]), abs=1e-5)
    assert batches[1][0].prompt_ids == policy.encode("say green", example=EXAMPLES[2])


def test_texts_are_completed_and_chats_are_answered_with_what_the_teacher_is_to_read() -> None:
    with serving(lambda asked: said("x")) as server:
        teacher = _teacher(server.url + "/v1/", num_candidates=1, extra_body={"chat_template_kwargs": {"think": False}})
        batches_of(teacher, request_of(EXAMPLES, max_new_tokens=9, seed=4), FakePolicy())
    by_path = sorted((path, json.dumps(asked.get("messages", asked.get("prompt")))) for path, asked in server.asked)
    assert by_path == [
        ("/v1/chat/completions", '[{"role": "user", "content": "say GREEN"}]'),
        ("/v1/chat/completions", '[{"role": "user", "content": "say blue"}]'),
        ("/v1/completions", '"say red"'),
    ]
    for _, asked in server.asked:
        assert (asked["model"], asked["temperature"], asked["top_p"], asked["max_tokens"]) == ("big", 0.7, 0.95, 9)
        assert asked["chat_template_kwargs"] == {"think": False}
    assert server.keys == [None] * 3


def test_seeds_of_questions_differ_and_are_a_function_of_the_runs_seed_and_step() -> None:
    def seeds(*, step: int = 1, seed: int = 0) -> set[int]:
        with serving(lambda asked: said("x")) as server:
            batches_of(_teacher(server.url), request_of(EXAMPLES, step=step, seed=seed), FakePolicy())
        return {asked["seed"] for _, asked in server.asked}

    assert len(seeds()) == 6
    assert seeds() == seeds()
    assert seeds().isdisjoint(seeds(step=2))
    assert seeds().isdisjoint(seeds(seed=1))


@pytest.mark.parametrize(
    ("answer", "text", "reason", "ends"),
    [
        (said("cut", finish_reason="length"), "cut", "length", False),
        (said("a<|im_end|>b", finish_reason="length"), "a", "stop", True),
        (said(""), "", "stop", True),
        (said("much longer than eight"), "much lon", "length", False),
    ],
)
def test_where_a_response_ends(answer: Answer, text: str, reason: str, ends: bool) -> None:
    with serving(lambda asked: answer) as server:
        policy = FakePolicy()
        teacher = _teacher(server.url, num_candidates=1)
        ((episode,),) = batches_of(teacher, request_of(EXAMPLES[:1], max_new_tokens=8), policy)
    assert (policy.decode(episode.response_ids), episode.finish_reason) == (text, reason)
    assert (episode.response_ids[-1] == END) is ends


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(content=b"{nonsense"), "answered something else than OpenAI's API: JSONDecodeError"),
        (Answer(content=b'{"choices": []}'), "answered something else"),
        (Answer(content=b'{"choices": 4}'), "answered something else"),
        (Answer(content=b"[" * 100_000), "answered something else"),
        (Answer(content=b"\xff\xfe\x00"), "answered something else"),
        (said(None), "wrote no text: content None"),
        (said("x", finish_reason=None), "finish_reason None"),
        (said("x", finish_reason="content_filter"), "finish_reason is 'content_filter', neither stop nor length"),
        (said("", finish_reason="length"), "its response has no tokens"),
        (Answer(status=400, content=b"too long"), "refuses the question, status 400: 'too long'"),
        (Answer(status=307, headers={"location": "http://127.0.0.1:1/"}), "refuses the question, status 307"),
        (Answer(content=b"x" * 100, breaks_off=True), "broke off"),
    ],
)
def test_bad_answer_costs_its_candidate_alone_and_is_not_asked_for_again(answer: Answer, why: str) -> None:
    def script(asked: Asked) -> Answer:
        return answer if asked.get("prompt") == "say red" else said("fine")

    bad = OnBadList()
    with serving(script) as server:
        policy = FakePolicy()
        batches = batches_of(_teacher(server.url, num_candidates=1), request_of(EXAMPLES), policy, bad)
        assert texts_of(batches, policy) == [["fine", "fine"]]
        assert len(server.asked) == 3
    (error,) = bad.errors
    assert isinstance(error, InvalidEpisodeError)
    assert error.where == "example 0 (candidate 0)"
    assert why in error.why


def test_answer_without_end_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "MAX_ANSWER_BYTES", 1 << 20)
    bad = OnBadList()
    with serving(lambda asked: said("x" * (2 << 20))) as server:
        assert batches_of(_teacher(server.url, num_candidates=1), request_of(EXAMPLES[:1]), FakePolicy(), bad) == []
    assert "longer than 1 MiB" in bad.texts[0]


def test_question_that_hangs_is_given_up_at_its_deadline_and_costs_itself() -> None:
    def script(asked: Asked) -> Answer:
        return Answer(hangs=True) if asked.get("prompt") == "say red" else said("fine")

    bad = OnBadList()
    with serving(script) as server:
        policy = FakePolicy()
        teacher = _teacher(server.url, num_candidates=1, timeout_seconds=2.0)
        assert texts_of(batches_of(teacher, request_of(EXAMPLES), policy, bad), policy) == [["fine", "fine"]]
    assert "gave no answer in 2 s" in bad.texts[0]
    assert len(bad.texts) == 1


def test_what_passes_is_asked_again_and_the_wait_that_the_server_asks_for_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    answers = iter([Answer(status=503), Answer(status=429, headers={"retry-after": "7"}), said("at last")])
    with serving(lambda asked: next(answers)) as server:
        policy = FakePolicy()
        teacher = _teacher(server.url, num_candidates=1)
        assert texts_of(batches_of(teacher, request_of(EXAMPLES[:1]), policy), policy) == [["at last"]]
    assert len(waits) == 2
    assert 0 <= waits[0] <= 0.5
    assert 7 <= waits[1] <= 8


@pytest.mark.parametrize("status", [500, 429])
def test_server_that_stays_away_or_overloaded_is_no_examples_fault(status: int) -> None:
    with serving(lambda asked: Answer(status=status, content=b"busy")) as server:
        teacher = _teacher(server.url, num_candidates=1, timeout_seconds=0.5)
        with pytest.raises(TeacherUnavailableError, match=rf"base_url: .*status {status}: 'busy'"):
            batches_of(teacher, request_of(EXAMPLES[:1]), FakePolicy())
    away = _teacher(f"http://127.0.0.1:{unused_port()}", num_candidates=1, timeout_seconds=0.5)
    with pytest.raises(TeacherUnavailableError, match="ConnectError"):
        batches_of(away, request_of(EXAMPLES[:1]), FakePolicy())


def test_settings_that_the_server_refuses_stop_everything_and_are_named() -> None:
    with serving(lambda asked: Answer(status=404, content=b"no such model")) as server:
        with pytest.raises(InvalidPartError, match=r"engine_options: .*refuses model 'big'.*no such model.*base_url"):
            batches_of(_teacher(server.url), request_of(EXAMPLES[:1]), FakePolicy())
        assert len(server.asked) == 2  # two candidates, each once


def test_key_is_read_from_the_environment_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"api_key_variable='MY_KEY': the environment has no such variable"):
        _teacher("http://127.0.0.1:1", api_key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "s3cret")
    with serving(lambda asked: Answer(status=401, content=b"who are you")) as server:
        teacher = _teacher(server.url, api_key_variable="MY_KEY", num_candidates=1)
        with pytest.raises(InvalidPartError, match="check the key") as raised:
            batches_of(teacher, request_of(EXAMPLES[:1]), FakePolicy())
    assert server.keys == ["Bearer s3cret"]
    assert "s3cret" not in str(raised.value)


def test_no_more_questions_than_allowed_are_asked_at_once() -> None:
    gate = threading.Barrier(2)

    def script(asked: Asked) -> Answer:
        gate.wait(timeout=30)  # passes only where two are here at once
        return said("x")

    with serving(script) as server:
        teacher = _teacher(server.url, num_candidates=8, max_concurrency=2)
        batches_of(teacher, request_of(EXAMPLES[:1]), FakePolicy())
    assert server.most_at_once == 2


def _by_seed(texts: list[str]) -> Callable[[Asked], Answer]:
    """Answers in the order of the seeds: which candidate says what depends on the seed alone."""
    seeds: dict[int, str] = {}
    lock = threading.Lock()

    def script(asked: Asked) -> Answer:
        with lock:
            return said(seeds.setdefault(asked["seed"], texts[len(seeds) % len(texts)]))

    return script


def test_best_keeps_as_many_as_are_wanted_by_reward() -> None:
    with serving(_by_seed(["blue", "it is red", "green", "red"])) as server:
        policy = FakePolicy()
        teacher = _teacher(server.url, num_candidates=4, choose="best", max_concurrency=1)
        ((*kept,),) = batches_of(teacher, request_of(EXAMPLES[:1], num_responses=2), policy)
    assert [policy.decode(one.response_ids) for one in kept] == ["it is red", "red"]
    assert [(one.sample, one.reward) for one in kept] == [(0, None), (1, None)]
    assert [one.info["choice"] for one in kept] == [
        {"candidate": 1, "reward": 1.0, "overlap": 0.0},
        {"candidate": 3, "reward": 1.0, "overlap": 0.0},
    ]


def test_most_overlap_keeps_the_right_one_that_the_student_would_rather_have_written() -> None:
    texts = ["red red", "it is red!", "red"]
    policy = FakePolicy(num_top_ids=16)
    prompt = policy.encode("say red", example=EXAMPLES[0])

    def overlap(text: str) -> float:
        """Dense, token by token."""
        ids = [*policy.tokenizer(text)["input_ids"], END]
        inside = [
            token in policy.logprobs_TV(prompt, ids)[place].topk(16).indices.tolist() for place, token in enumerate(ids)
        ]
        return sum(inside) / len(inside)

    overlaps = [overlap(text) for text in texts]
    assert len(set(overlaps)) == 3
    with serving(_by_seed([*texts, "wrong"])) as server:
        teacher = _teacher(server.url, num_candidates=4, choose="most_overlap", max_concurrency=1)
        assert teacher.num_top_ids == 16
        ((kept,),) = batches_of(teacher, request_of(EXAMPLES[:1]), policy)
    best = max(range(3), key=overlaps.__getitem__)
    assert policy.decode(kept.response_ids) == texts[best]
    assert kept.info["choice"] == {"candidate": best, "reward": 1.0, "overlap": pytest.approx(overlaps[best])}


def test_overlap_needs_the_students_likeliest_tokens() -> None:
    with serving(lambda asked: said("red")) as server:
        teacher = _teacher(server.url, choose="most_overlap")
        with pytest.raises(InvalidPartError, match=r"needs the student's 16 likeliest tokens, and 8 are kept"):
            batches_of(teacher, request_of(EXAMPLES[:1]), FakePolicy(num_top_ids=8))


def test_overlap_counts_the_students_own_tokens_alone() -> None:
    policy = FakePolicy(num_top_ids=2)
    (view,) = policy.view([(5, 6)], [(7,)])
    assert view.top_ids_TK is not None
    likeliest = int(view.top_ids_TK[0, 0])
    (own,) = policy.view([(5, 6)], [(likeliest,)])
    segments = (
        Segment(ids=(likeliest,), is_policy=True, student=own),
        Segment(ids=(0, 1), is_policy=False),  # what an unwritten view fills its likeliest tokens with
    )
    episode = Episode(example=EXAMPLES[0], slot=0, prompt_ids=(5, 6), segments=segments, finish_reason="turns")
    assert overlap_of(episode, top_k=2) == 1.0


def test_slot_without_a_candidate_that_is_good_enough_has_no_episode(caplog: pytest.LogCaptureFixture) -> None:
    script = lambda asked: said("blue")  # noqa: E731  one line says it
    with serving(script) as server:
        policy = FakePolicy()
        teacher = _teacher(server.url, choose="best", min_reward=1.0)
        batches = batches_of(teacher, request_of(EXAMPLES[:2]), policy)
    assert [[one.slot for one in batch] for batch in batches] == [[1]]
    assert "no candidate is good enough: slot=0 best=0.0" in caplog.text


def test_candidates_must_be_as_many_as_are_kept() -> None:
    teacher = _teacher("http://127.0.0.1:1", choose="best", num_candidates=2)
    with pytest.raises(InvalidPartError, match=r"num_candidates=2 is below rollout.responses_per_prompt=3"):
        batches_of(teacher, request_of(EXAMPLES, num_responses=3), FakePolicy())


def test_prompt_that_the_student_cannot_encode_costs_its_example() -> None:
    bad = OnBadList()
    with serving(lambda asked: said("x")) as server:
        batches = batches_of(_teacher(server.url), request_of(EXAMPLES), FakePolicy(refuses="say red"), bad)
    assert {one.slot for batch in batches for one in batch} == {1, 2}
    assert bad.texts == ["example 0: cannot be encoded"]


def test_options_of_the_settings_are_checked() -> None:
    options: dict[str, JsonValue] = {
        "base_url": "http://h:1",
        "model": "m",
        "reward": {"kind": "match", "options": {"how": "exact"}},
    }
    key = "rollout.engine"
    assert isinstance(ENGINES.make("openai", options, key=key), TeacherWrites)
    for wrong, why in (
        ({"num_candidates": 0}, r"rollout\.engine_options\.num_candidates: Input should be greater than or equal to 1"),
        ({"base_url": "host:8000"}, r"rollout\.engine_options: openai refuses them: .*no URL"),
        ({"model": ""}, "model is empty"),
        ({"temprature": 1.0}, "TeacherWrites has no such option"),
        ({"reward": {"kind": "mtch"}}, r"rollout\.engine_options\.reward\.kind='mtch' is not a reward"),
        ({"choose": "worst"}, r"rollout\.engine_options\.choose"),
    ):
        with pytest.raises(InvalidPartError, match=why):
            ENGINES.make("openai", {**options, **wrong}, key=key)  # type: ignore[dict-item]  # wrong on purpose
    assert TeacherWrites("http://h:1", "m", reward=PartConfig(kind="match")).num_top_ids == 0


def test_tools_calls_and_template_variables_reach_the_teachers_template() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = ToolCall(name="look", arguments={"at": [1]}, id="c1")
    example = Example(
        index=0,
        prompt=(
            ChatMessage("user", "look"),
            ChatMessage("assistant", tool_calls=(call,)),
            ChatMessage("tool", "a cat", tool_call_id="c1"),
        ),
        tools=(json.dumps(tool),),
        teacher_chat_template_kwargs={"think": True},
    )
    extra = {"chat_template_kwargs": {"think": False, "style": "short"}}
    policy = FakePolicy()
    template = "{{ tools }}{% for one in messages %}{{ one.content }}{{ one.tool_calls }}{% endfor %}"
    policy.student.tokenizer.chat_template = template
    with serving(lambda asked: said("x")) as server:
        teacher = _teacher(server.url, num_candidates=1, extra_body=extra)
        batches_of(teacher, request_of([example]), policy)
    ((_, asked),) = server.asked
    assert asked["messages"] == [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": [1]}'}}],
        },
        {"role": "tool", "content": "a cat", "tool_call_id": "c1"},
    ]
    assert (asked["tools"], asked["tool_choice"]) == ([tool], "none")
    assert asked["chat_template_kwargs"] == {"think": True, "style": "short"}


def test_environment_that_would_never_be_asked_is_refused() -> None:
    request = replace(request_of(EXAMPLES), make_environment=lambda *_: pytest.fail("made"))
    with pytest.raises(InvalidPartError, match="environment is set: remove it, or take another engine"):
        batches_of(_teacher("http://127.0.0.1:1"), request, FakePolicy())


def test_late_answer_of_a_server_that_was_away_before_is_the_servers_fault() -> None:
    answers = iter([Answer(status=503), *[Answer(hangs=True)] * 9])
    with serving(lambda asked: next(answers)) as server:
        teacher = _teacher(server.url, num_candidates=1, timeout_seconds=1.5)
        with pytest.raises(TeacherUnavailableError, match=r"2 attempt\(s\), .* status 503: '', then no answer in"):
            batches_of(teacher, request_of(EXAMPLES[:1]), FakePolicy())
