"""Students with tokenizers of their own, against a real server: a small Llama whose tokenizer has merges."""

# T = tokens of a response, N = scored positions, M = tokens that the teacher read, K = support size

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy, VocabularyRelation
from preceptor_client import BlockingTeacherClient, Registration, ResponseScores, StudentIds, TeacherIds, Text
from preceptor_client.errors import InvalidRequestError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.integration.servers import RunningServer, running_server, start_server
from tests.integration.trainers import run_training, write_run
from tests.tiny import CHAT_TEMPLATE, save_tiny, tiny_llama
from tests.unit.server.alignment.tokenizers_for_tests import byte_level, gemma_like, permuted

END = "<|end|>"
TEXTS = [
    "the other brothers bother the dog, and 345 of them sleep there",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n",
    "café naïve 你好 😀 weather\t\tfeathers   in the mother",
    "z",
]
K = 12


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merging")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level()), eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny_llama(spread=0.6, vocabulary_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    arguments = ["--engine.model", str(teacher_folder)]
    with running_server(tmp_path_factory.mktemp("server"), *arguments) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[BlockingTeacherClient]:
    with BlockingTeacherClient(server.address) as opened:
        yield opened


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def encoded(tokenizer_json: str) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    end = tokenizer.token_to_id(END)
    return [tokenizer.encode(text).ids + ([end] if end is not None else []) for text in TEXTS]


def test_a_permuted_copy_gets_the_same_supports_and_logprobs_to_the_bit(client: BlockingTeacherClient) -> None:
    student_json = permuted(byte_level())
    registration = client.register_tokenizer(student_json)
    assert registration.report.relation is VocabularyRelation.PERMUTED
    assert registration.report.mapped_share == 1.0
    tokens, own_tokens = Tokenizer.from_str(student_json), Tokenizer.from_str(byte_level())
    names = [own_tokens.id_to_token(i) or "" for i in range(own_tokens.get_vocab_size())]
    new_of_old = np.array([id_of(tokens, name) for name in names])

    for policy in (SegmentationPolicy.AS_IS, SegmentationPolicy.MASK, SegmentationPolicy.CANONICAL):
        own = client.score(TeacherIds([5, 6, 7]), encoded(byte_level()), top_k=K, batch_invariant=True)
        theirs = client.score(
            StudentIds(new_of_old[[5, 6, 7]]),
            encoded(student_json),
            top_k=K,
            tokenizer_id=registration.tokenizer_id,
            batch_invariant=True,
            segmentation=policy,
        )
        assert theirs.prompt_ids.tolist() == [5, 6, 7]
        for a, b in zip(own.responses, theirs.responses, strict=True):
            np.testing.assert_array_equal(new_of_old[a.support_ids_NK], b.support_ids_NK)
            for column in ("support_logprobs_NK", "sampled_logprobs_N", "log_tail_mass_N", "entropies_N", "status_T"):
                np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)


@pytest.mark.parametrize("policy", [SegmentationPolicy.MASK, SegmentationPolicy.CANONICAL])
def test_the_teachers_own_tokenizer_is_bit_equal_to_the_unaligned_path(
    client: BlockingTeacherClient, policy: SegmentationPolicy
) -> None:
    end = id_of(Tokenizer.from_str(byte_level()), END)
    registration = client.register_tokenizer(byte_level(), chat_template=CHAT_TEMPLATE, end_token_ids=[end])
    assert registration.report.relation is VocabularyRelation.IDENTICAL
    plain = client.score(TeacherIds([5, 6, 7]), encoded(byte_level()), top_k=K, batch_invariant=True)
    aligned = client.score(
        StudentIds([5, 6, 7]),
        encoded(byte_level()),
        top_k=K,
        tokenizer_id=registration.tokenizer_id,
        batch_invariant=True,
        segmentation=policy,
    )
    for a, b in zip(plain.responses, aligned.responses, strict=True):
        assert (b.status_T == PositionStatus.OK).all()
        assert b.teacher_ids_M is None
        np.testing.assert_array_equal(a.support_ids_NK, b.support_ids_NK)
        np.testing.assert_array_equal(a.support_logprobs_NK, b.support_logprobs_NK)
        np.testing.assert_array_equal(a.log_tail_mass_N, b.log_tail_mass_N)


def token_bytes(tokenizer_json: str, ids: list[int]) -> list[bytes]:
    """By the library's own decoder, token by token; for tokens that are whole characters."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    return [tokenizer.decode([i], skip_special_tokens=True).encode() for i in ids]


def test_what_was_scored_for_a_stranger_can_be_scored_again_by_the_teachers_own_ids(
    client: BlockingTeacherClient,
) -> None:
    """The teacher's ids of the answer, replayed, give the distributions that the answer was projected from."""
    registration = client.register_tokenizer(gemma_like())
    assert registration.report.relation is VocabularyRelation.OVERLAPPING
    responses = encoded(gemma_like())[:2]
    scores = client.score(
        Text("the dog"),
        responses,
        top_k=K,
        tokenizer_id=registration.tokenizer_id,
        batch_invariant=True,
        logprob_dtype=LogprobDtype.F32,
    )
    assert scores.segmentation is SegmentationPolicy.CANONICAL
    teacher_ids = [response.teacher_ids_M for response in scores.responses]
    assert all(ids is not None for ids in teacher_ids)
    replayed = client.score(
        TeacherIds(scores.prompt_ids),
        [ids for ids in teacher_ids if ids is not None],
        top_k=2 * K,
        batch_invariant=True,
        logprob_dtype=LogprobDtype.F32,
    )
    for ids, aligned, own in zip(responses, scores.responses, replayed.responses, strict=True):
        _check_replay(ids, aligned, own)


def _check_replay(ids: list[int], aligned: ResponseScores, own: ResponseScores) -> None:
    assert aligned.teacher_ids_M is not None
    assert aligned.teacher_rows_N is not None
    ours, theirs = token_bytes(gemma_like(), ids), token_bytes(byte_level(), aligned.teacher_ids_M.tolist())
    assert b"".join(ours) == b"".join(theirs)
    our_ends, their_ends = np.cumsum([len(x) for x in ours]), np.cumsum([len(x) for x in theirs])
    num_plain = 0
    assert aligned.entropies_N is not None
    assert own.entropies_N is not None
    for row, (position, teacher_row) in enumerate(zip(aligned.positions_N, aligned.teacher_rows_N, strict=True)):
        start, teacher_start = (int(e[i] - len(x[i])) for e, i, x in (
            (our_ends, position, ours), (their_ends, teacher_row, theirs)
        ))  # fmt: skip
        assert abs(start - teacher_start) <= 1
        np.testing.assert_array_equal(aligned.entropies_N[row], own.entropies_N[teacher_row])
        if start == teacher_start:
            num_plain += 1
            # At least what the teacher gave to its own way over the student's token is the student's.
            stop = int(np.searchsorted(their_ends, our_ends[position])) + 1
            path = math.exp(own.sampled_logprobs_N[teacher_row:stop].astype(np.float64).sum())
            assert math.exp(aligned.sampled_logprobs_N[row]) >= path * (1 - 1e-5)
    assert num_plain >= 0.5 * len(ids)
    mass_N = np.exp(aligned.support_logprobs_NK.astype(np.float64)).sum(axis=1) + np.exp(aligned.log_tail_mass_N)
    np.testing.assert_allclose(mass_N, 1.0, atol=1e-5)


def test_bytes_that_are_no_text_are_scored_where_they_can_be(client: BlockingTeacherClient) -> None:
    registration = client.register_tokenizer(permuted(byte_level(), seed=3))
    tokenizer = Tokenizer.from_str(permuted(byte_level(), seed=3))
    broken = [id_of(tokenizer, token) for token in ("Ġ", "Ł", "ð", "t")]  # a space, two torn bytes, a letter
    policy = SegmentationPolicy.CANONICAL
    scores = client.score(
        Text("the"), [broken], top_k=K, tokenizer_id=registration.tokenizer_id, segmentation=policy
    ).responses[0]
    assert scores.status_T.tolist() == [PositionStatus.OK] * 4


def test_policies_that_need_the_same_ids_are_refused_to_strangers(client: BlockingTeacherClient) -> None:
    registration = client.register_tokenizer(gemma_like())
    with pytest.raises(InvalidRequestError, match="OVERLAPPING, not one to one: use CANONICAL"):
        client.score(
            Text("the"),
            encoded(gemma_like())[:1],
            top_k=K,
            tokenizer_id=registration.tokenizer_id,
            segmentation=SegmentationPolicy.MASK,
        )


def score_once(client: BlockingTeacherClient, registration: Registration, ids: list[int]) -> list[float]:
    scores = client.score(
        Text("the"), [ids], top_k=K, tokenizer_id=registration.tokenizer_id, batch_invariant=True, timeout_seconds=60
    )
    logprobs: list[float] = scores.responses[0].sampled_logprobs_N.tolist()
    return logprobs


def test_a_server_that_lost_a_tokenizer_gets_it_again_without_the_caller_noticing(
    teacher_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--engine.model", str(teacher_folder), "--limits.max-tokenizers", "1"]
    strange, kin = gemma_like(), permuted(byte_level())
    with running_server(tmp_path, *arguments) as first, BlockingTeacherClient(first.address) as client:
        registered = [client.register_tokenizer(tokenizer_json) for tokenizer_json in (strange, kin)]
        ids = [encoded(tokenizer_json)[0] for tokenizer_json in (strange, kin)]
        # Each pushes the other out.
        before = [score_once(client, *pair) for pair in zip(registered, ids, strict=True)]
        first.kill()
        second = start_server(tmp_path, *arguments, port=int(first.address.split(":")[1]))
        try:
            after = [score_once(client, *pair) for pair in zip(registered, ids, strict=True)]
        finally:
            second.kill()
    assert before == after


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token per byte, where the teacher has words."""
    return save_tiny(tmp_path_factory.mktemp("student"), tiny_llama(seed=1))


def test_a_run_across_tokenizers_is_refused_until_it_is_accepted_and_then_learns(
    server: RunningServer, student_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=student_folder, address=server.address, num_steps=16)
    status, output = run_training(files)
    assert status != 0
    assert "accept_other_tokenizer" in output
    status, output = run_training(files, "--teacher.accept-other-tokenizer", "true", "--evaluation.loss", "true")
    assert status == 0, output
    losses = files.losses()
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    alignment = json.loads((files.directory / "alignment.json").read_text())
    assert "canonical" in json.dumps(alignment).lower()
