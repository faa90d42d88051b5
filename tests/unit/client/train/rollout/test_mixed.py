from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.rollout.engine import ENGINES, OnBad, Policy, RolloutRequest
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.rollout.mixed import Mixed, MixedPart, places_by_share

from tests.unit.client.train.rollout.fake_policy import FakePolicy, OnBadList, batches_of, request_of

EXAMPLES = [Example(index=index, prompt=f"say {index}") for index in range(10)]


class OwnWords:
    """Lets the policy write; two examples to a batch."""

    num_top_ids = 3

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        for first in range(0, len(request.examples), 2):
            yield [
                self._episode(example, slot=request.first_slot + place, request=request, policy=policy)
                for place, example in list(enumerate(request.examples))[first : first + 2]
            ]

    def _episode(self, example: Example, *, slot: int, request: RolloutRequest, policy: Policy) -> Episode:
        prompt = policy.encode(example.prompt, example=example)
        (written,) = policy.write([prompt], temperature=1.0, top_p=1.0, max_new_tokens=8, seed=request.seed)
        return single_turn(
            example=example, slot=slot, prompt_ids=prompt, response_ids=written.ids, finish_reason="stop",
            student=written.student,
        )  # fmt: skip


OWN = f"{__name__}:OwnWords"


def _file(folder: Path) -> str:
    path = folder / "episodes.jsonl"
    rows = [{"example": index, "response": f"theirs {index}"} for index in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _mixed(folder: Path, *, theirs: float, own: float) -> Mixed:
    return Mixed(
        [
            MixedPart(kind="jsonl", options={"path": _file(folder)}, share=theirs),
            MixedPart(kind=OWN, share=own),
        ]
    )


def test_every_example_is_rolled_out_once_by_one_engine_under_its_own_slot(tmp_path: Path) -> None:
    policy = FakePolicy()
    episodes = [
        one
        for batch in batches_of(_mixed(tmp_path, theirs=3, own=7), request_of(EXAMPLES, first_slot=5), policy)
        for one in batch
    ]
    assert sorted(one.slot for one in episodes) == list(range(5, 15))
    for one in episodes:
        assert one.example is EXAMPLES[one.slot - 5]
        assert policy.decode(one.response_ids) in ("own", f"theirs {one.example.index}")
    assert sum(policy.decode(one.response_ids) != "own" for one in episodes) == 3


def test_which_engine_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    policy, mixed = FakePolicy(), _mixed(tmp_path, theirs=1, own=1)

    def theirs(*, step: int, seed: int = 0) -> set[int]:
        batches = batches_of(mixed, request_of(EXAMPLES, step=step, seed=seed), policy)
        return {one.slot for batch in batches for one in batch if policy.decode(one.response_ids) != "own"}

    assert theirs(step=1) == theirs(step=1)
    assert len({frozenset(theirs(step=step)) for step in range(1, 6)}) == 5
    assert [theirs(step=step) for step in (1, 2)] != [theirs(step=step, seed=1) for step in (1, 2)]


def test_counts_are_shares_rounded_up_or_down_and_right_in_the_mean() -> None:
    shares = (0.7, 0.2, 0.1)
    num, totals = 4, [0, 0, 0]
    for step in range(1, 2001):
        places = places_by_share(num, shares=shares, seed=1, step=step)
        assert sorted(place for own in places for place in own) == list(range(num))
        for part, own in enumerate(places):
            assert num * shares[part] - 1 < len(own) < num * shares[part] + 1
            totals[part] += len(own)
    # 2000 draws of a count whose deviation is below 1/2: five deviations of the mean are 0.056.
    for part, share in enumerate(shares):
        assert totals[part] / 2000 == pytest.approx(num * share, abs=0.056)


def test_each_engine_answers_every_prompt_and_their_episodes_stand_side_by_side(tmp_path: Path) -> None:
    policy = FakePolicy()
    mixed = Mixed(
        [MixedPart(kind=OWN), MixedPart(kind="jsonl", options={"path": _file(tmp_path)}), MixedPart(kind=OWN)],
        every_prompt=True,
    )
    batches = batches_of(mixed, request_of(EXAMPLES, first_slot=5, batch_size=4), policy)
    found = [[(one.slot, one.sample, policy.decode(one.response_ids)) for one in batch] for batch in batches]
    assert found == [
        [answer for slot in slots for answer in ((slot, 0, "own"), (slot, 1, f"theirs {slot - 5}"), (slot, 2, "own"))]
        for slots in (range(5, 9), range(9, 13), range(13, 15))
    ]
    for one in (one for batch in batches for one in batch):
        assert one.example is EXAMPLES[one.slot - 5]
        assert one.info["engine"] == ("jsonl" if one.sample == 1 else OWN)
    assert len(set(policy.seeds)) == 2


def test_example_that_each_engine_refuses_is_told_once(tmp_path: Path) -> None:
    policy, bad = FakePolicy(refuses="say 3"), OnBadList()
    file = MixedPart(kind="jsonl", options={"path": _file(tmp_path)})
    batches = batches_of(Mixed([file, file], every_prompt=True), request_of(EXAMPLES), policy, bad)
    assert bad.texts == ["example 3: cannot be encoded"]
    assert [one.slot for batch in batches for one in batch] == [
        slot for slot in range(10) for _ in range(2) if slot != 3
    ]


def test_engine_with_a_share_of_nothing_in_a_step_is_not_asked(tmp_path: Path) -> None:
    places = [places_by_share(1, shares=(0.5, 0.5), seed=0, step=step) for step in range(1, 40)]
    assert {tuple(len(own) for own in one) for one in places} == {(1, 0), (0, 1)}
    assert places_by_share(0, shares=(0.5, 0.5), seed=0, step=1) == [[], []]
    assert places_by_share(7, shares=(2.0,), seed=0, step=1) == [list(range(7))]


def test_engines_of_one_kind_draw_apart() -> None:
    policy = FakePolicy()
    mixed = Mixed([MixedPart(kind=OWN, share=1), MixedPart(kind=OWN, share=1)])
    batches_of(mixed, request_of(EXAMPLES), policy)
    assert len(set(policy.seeds)) == 2
    assert mixed.num_top_ids == 3


def test_parts_of_the_settings_are_checked(tmp_path: Path) -> None:
    part = {"kind": "jsonl", "options": {"path": _file(tmp_path)}, "share": 1}
    assert isinstance(ENGINES.make("mixed", {"parts": [part]}, key="rollout.engine"), Mixed)  # type: ignore[list-item]
    for parts, why in (
        ([], r"rollout\.engine_options\.parts: List should have at least 1 item"),
        ([{**part, "share": 0}], r"rollout\.engine_options\.parts\.0\.share"),
        ([{"kind": "jsonl", "share": 1}], r"rollout\.engine_options\.parts\[0\]\.options\.path: Field required"),
        ([{"kind": "nothing", "share": 1}], r"parts\[0\]\.kind='nothing' is not a rollout engine"),
    ):
        with pytest.raises(InvalidPartError, match=why):
            ENGINES.make("mixed", {"parts": parts}, key="rollout.engine")  # type: ignore[dict-item]
