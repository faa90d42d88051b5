"""The two special-token failures that arXiv 2603.25562 shows (its figure 5), with its logprobs, under every policy.

Both sides have one vocabulary, so nothing that compares vocabularies notices either. The student writes `<`, `think`,
`>`, where the teacher's tokenizer writes `<th`, `ink`, `>`; and it ends with `<|im_end|>`, the teacher with
`<|endoftext|>`. The teacher here is a table: sure of its own way, and of what the paper measured off it.
"""

# T = tokens of the response, V = vocabulary, K = support size

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import torch
from preceptor.fingerprint import tokenizer_id
from preceptor.wire import LogprobArray, LogprobDtype, PositionStatus, SegmentationPolicy, TokenArray
from preceptor_client.objectives.lsm import lsm
from preceptor_server.alignment.aligner import build_aligner
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.types import Alignment
from preceptor_server.calls import AskedResponse, ScoreCall, TeacherIds
from preceptor_server.config import LimitsConfig, SchedulerConfig
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.scoring import score_call
from preceptor_server.types import EngineInfo, GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engines.fake import dense_columns
from tests.unit.server.preparing import CALLER

ENDOFTEXT, IM_END = "<|endoftext|>", "<|im_end|>"
QWEN_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = [("<", "t"), ("<t", "h"), ("i", "n"), ("in", "k"), ("t", "h"), ("th", "ink")]
NON_CANONICAL_STUDENT, NON_CANONICAL_TEACHER = -0.07, -19.16
END_STUDENT, END_TEACHER = -0.001, -58.71
K = 8


def qwen_like() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [ENDOFTEXT, IM_END, *alphabet, *(a + b for a, b in MERGES)]
    backend = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=MERGES))
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([ENDOFTEXT, IM_END])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ENDOFTEXT)


TOKENIZER = qwen_like()
V = len(TOKENIZER)


def ids_of(*names: str) -> list[int]:
    vocabulary = TOKENIZER.get_vocab()
    return [vocabulary[name] for name in names]


PROMPT = ids_of("a")
OWN_WAY = ids_of("<th", "ink", ">", ENDOFTEXT)
RESPONSE = ids_of("<", "think", ">", IM_END)
OTHER_WAYS = {"<": NON_CANONICAL_TEACHER, "think": NON_CANONICAL_TEACHER, IM_END: END_TEACHER}


class TableTeacher:
    """Writes its own way, token after token; whatever the prefix, position t of it continues with the t-th."""

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="table",
            model="table",
            revision="1",
            dtype="float32",
            device="cpu",
            vocabulary_size=V,
            max_model_len=64,
            end_token_ids=(OWN_WAY[-1],),
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return [tuple(self._score(response, group.top_k) for response in group.responses) for group in batch]

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        raise NotImplementedError

    def _score(self, response: ResponseToScore, top_k: int) -> ResponseColumns:
        logits_TV = np.full((len(response.ids_T), V), -70.0)
        for name, logprob in OTHER_WAYS.items():
            logits_TV[:, ids_of(name)] = logprob
        logits_TV[np.arange(len(response.ids_T)), OWN_WAY[: len(response.ids_T)]] = 0.0
        return dense_columns(logits_TV, response, top_k=top_k)


@pytest.fixture
async def teacher() -> AsyncIterator[HostedTeacher]:
    engine, tokenizer, limits = TableTeacher(), TeacherTokenizer(TOKENIZER), LimitsConfig()
    scheduler = Scheduler(engine, SchedulerConfig(batch_window_ms=0))
    scheduler.start()
    yield HostedTeacher(
        name="table",
        engine=engine,
        tokenizer=tokenizer,
        aligner=build_aligner(tokenizer, engine.info(), limits),
        scheduler=scheduler,
        limits=limits,
        max_queue_tokens=10_000,
    )
    await scheduler.stop()


async def registered(teacher: HostedTeacher) -> Alignment:
    assert teacher.aligner is not None
    alignment = await teacher.aligner.registry.register(
        Registration(
            tokenizer_id=tokenizer_id(TOKENIZER.backend_tokenizer.to_str(), None),
            tokenizer_json=b"",
            chat_template="",
            end_token_ids=tuple(ids_of(IM_END)),
            teacher_end_token_ids=(),
            special_pairs={},
            vocabulary_size=0,
        )
    )
    assert alignment is not None
    return alignment


async def losses(
    teacher: HostedTeacher, policy: SegmentationPolicy, *, paper_tokens: Sequence[str] = ()
) -> list[float | PositionStatus]:
    """Per position the loss in nats of a student that is as sure of its tokens as the paper's, or why there is none."""
    response = AskedResponse(ids_T=np.array(RESPONSE), score_mask_T=np.ones(len(RESPONSE), np.bool_))
    call = ScoreCall(
        tokenizer_id=(await registered(teacher)).tokenizer_id,
        prompt=TeacherIds(ids_P=np.array(PROMPT)),
        responses=(response,),
        segmentation=policy,
        paper_token_ids=tuple(ids_of(*paper_tokens)),
        top_k=K,
        temperature=1.0,
        logprob_dtype=LogprobDtype.F32,
    )
    columns = (await score_call(call, teacher, caller=CALLER, timeout_seconds=10)).responses[0].columns
    found: list[float | PositionStatus] = [PositionStatus(status) for status in columns.status_T.tolist()]
    positions = np.flatnonzero(columns.status_T == PositionStatus.OK)
    for row, position in enumerate(positions.tolist()):
        sure = END_STUDENT if RESPONSE[position] == RESPONSE[-1] else NON_CANONICAL_STUDENT
        student_V = torch.full((V,), float(np.log(-np.expm1(sure) / (V - 1))))
        student_V[RESPONSE[position]] = sure
        logits_1K = student_V[torch.from_numpy(columns.support_ids_NK[row : row + 1])]
        found[position] = float(lsm(logits_1K, torch.from_numpy(columns.support_logprobs_NK[row : row + 1])))
    return found


async def test_unchanged_both_cases_cost_more_than_10_nats(teacher: HostedTeacher) -> None:
    found = await losses(teacher, SegmentationPolicy.AS_IS)
    # `>` is the same token on both ways.
    assert found == pytest.approx([19.204, 19.204, 0.086, 58.709], abs=1e-3)


async def test_mask_takes_the_non_canonical_tokens_out_and_the_end_agrees(teacher: HostedTeacher) -> None:
    first, second, *agreed = await losses(teacher, SegmentationPolicy.MASK)
    assert first is second is PositionStatus.MISALIGNED
    assert agreed == pytest.approx([0.086, 0.0011], abs=1e-3)


async def test_canonical_agrees_at_the_first_token_and_masks_what_stands_inside_the_teachers(
    teacher: HostedTeacher,
) -> None:
    first, second, *agreed = await losses(teacher, SegmentationPolicy.CANONICAL)
    assert second is PositionStatus.MISALIGNED
    assert [first, *agreed] == pytest.approx([0.100, 0.086, 0.0011], abs=1e-3)


async def test_the_papers_own_rule_masks_the_listed_tokens(teacher: HostedTeacher) -> None:
    found = await losses(teacher, SegmentationPolicy.PAPER, paper_tokens=["<", "think", IM_END])
    special = PositionStatus.SPECIAL
    assert [found[0], found[1], found[3]] == [special, special, special]
    assert found[2] == pytest.approx(0.086, abs=1e-3)
