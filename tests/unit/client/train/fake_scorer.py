"""A teacher in the same process: a dense fp32 log-softmax over one sequence at a time, without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import torch
from preceptor.fingerprint import vocabulary_id
from preceptor.wire import PositionStatus, SegmentationPolicy, VocabularyRelation
from preceptor_client.request import CandidateIdArray, ScoreMask
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.types import (
    AlignmentReport,
    Capabilities,
    GroupScores,
    Limits,
    Prompt,
    Registration,
    ResponseScores,
    ServerInfo,
    SpecialToken,
    StudentIds,
    TeacherIds,
    TeacherInfo,
    Text,
    Timings,
)


@dataclass
class Call:
    """One submitted group."""

    prompt: Prompt
    responses: list[list[int]]
    options: ScoreOptions


REPORT = AlignmentReport(
    relation=VocabularyRelation.IDENTICAL,
    is_one_to_one=True,
    mapped_share=1.0,
    projected_share=1.0,
    differences=(),
    paired=(),
    masked=(),
    dropped=(),
    student_end_tokens=(SpecialToken(id=2, text="<|im_end|>"),),
    teacher_end_tokens=(SpecialToken(id=2, text="<|im_end|>"),),
    warnings=(),
)
"""Of two tokenizers that are the same."""


@dataclass
class FakeScorer:
    """Answers at once. `error_at` may name an error for a call, `refuses` one for a prompt, `status_of` a status for a
    response token, `support_of` how many tokens of its support are left."""

    teacher: Student
    name: str = "tiny"
    error_at: Callable[[int], Exception | None] = lambda index: None
    refuses: Callable[[Prompt], Exception | None] = lambda prompt: None
    status_of: Callable[[int], PositionStatus] = lambda position: PositionStatus.OK
    support_of: Callable[[int], int | None] = lambda position: None
    unmapped_mass: float = 0.0
    revision_at: Callable[[int], str] = lambda number: "1"
    """Of the weights that answer a call; calls count from 1."""
    computes_entropies: bool = True
    report: AlignmentReport = REPORT
    register_error: Exception | None = None
    server: ServerInfo | None = None
    calls: list[Call] = field(default_factory=list)
    reads: list[Prompt] = field(default_factory=list)
    """Prompts of groups of which nothing was to be scored."""
    registrations: list[dict[str, object]] = field(default_factory=list)

    def info(self) -> ServerInfo:
        return self.server or ServerInfo(
            server_version="0",
            teachers=(teacher_info(self.teacher, name=self.name),),
            limits=Limits(
                max_top_k=64,
                max_responses=16,
                max_group_tokens=4096,
                max_message_bytes=1 << 20,
                max_queue_tokens=4096,
                max_tokenizer_bytes=1 << 20,
            ),
        )

    def register_tokenizer(
        self,
        tokenizer_json: str,
        *,
        chat_template: str | None = None,
        teacher: str = "",
        end_token_ids: Sequence[int] = (),
        teacher_end_token_ids: Sequence[int] = (),
        special_pairs: Mapping[str, str] = {},
        vocabulary_size: int = 0,
    ) -> Registration:
        self.registrations.append(
            {
                "tokenizer_json": tokenizer_json,
                "chat_template": chat_template,
                "teacher": teacher,
                "end_token_ids": end_token_ids,
                "teacher_end_token_ids": teacher_end_token_ids,
                "special_pairs": special_pairs,
                "vocabulary_size": vocabulary_size,
            }
        )
        if self.register_error:
            raise self.register_error
        return Registration(tokenizer_id="registered", report=self.report)

    def submit(
        self, prompt: Prompt, responses: Sequence[Sequence[int]], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        future: Future[GroupScores] = Future()
        masks = options.get("score_masks")
        if masks is not None and not any(any(mask or [True]) for mask in masks):
            self.reads.append(prompt)
            _settle(future, self.refuses(prompt) or self._score(prompt, responses, options))
            return future
        error = self.error_at(len(self.calls)) or self.refuses(prompt)
        self.calls.append(Call(prompt=prompt, responses=[list(ids) for ids in responses], options=options))
        _settle(future, error or self._score(prompt, responses, options))
        return future

    def _score(self, prompt: Prompt, responses: Sequence[Sequence[int]], options: ScoreOptions) -> GroupScores:
        prompt_ids = self._encode(prompt)
        return GroupScores(
            teacher=self.name,
            revision=self.revision_at(len(self.calls)),
            tokenizer_id=options.get("tokenizer_id", ""),
            segmentation=options.get("segmentation") or SegmentationPolicy.AS_IS,
            top_k=options["top_k"],
            temperature=options.get("temperature", 1.0),
            prompt_ids=np.array(prompt_ids, np.int64),
            responses=tuple(
                self._score_one(prompt_ids, list(response), options, candidate_ids_TC, mask)
                for response, candidate_ids_TC, mask in zip(
                    responses,
                    options.get("candidate_ids") or [None] * len(responses),
                    options.get("score_masks") or [None] * len(responses),
                    strict=True,
                )
            ),
            timings=Timings(decode_ms=0, queue_ms=0, forward_ms=0, total_ms=0),
        )

    @torch.no_grad()
    def _score_one(
        self,
        prompt_ids: list[int],
        response: list[int],
        options: ScoreOptions,
        candidate_ids_TC: CandidateIdArray | None,
        mask: ScoreMask | None,
    ) -> ResponseScores:
        ids = torch.tensor([prompt_ids + response])
        logits_TV = self.teacher.model(ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
        logprobs_TV = torch.log_softmax(logits_TV.float() / options.get("temperature", 1.0), dim=1)
        status_T = np.array([self.status_of(position) for position in range(len(response))], np.uint8)
        if mask is not None:
            status_T[~np.asarray(mask, np.bool_)] = PositionStatus.EXCLUDED
        positions_N = np.flatnonzero(status_T == PositionStatus.OK)
        logprobs_NV = logprobs_TV[torch.from_numpy(positions_N)]
        support_NK = logprobs_NV.sort(dim=1, descending=True, stable=True)
        k = options["top_k"]
        top_NK, ids_NK = support_NK.values[:, :k].numpy().copy(), support_NK.indices[:, :k].numpy().copy()
        for row, position in enumerate(positions_N):
            if (num_left := self.support_of(int(position))) is not None:
                top_NK[row, num_left:], ids_NK[row, num_left:] = -np.inf, ids_NK[row, 0]
        candidates_NC = None if candidate_ids_TC is None else candidate_ids_TC[positions_N].astype(np.int64)
        sampled_N = torch.tensor(response)[torch.from_numpy(positions_N)]
        tail_N = np.clip(1 - np.exp(top_NK.astype(np.float64)).sum(axis=1), 0, 1)
        with np.errstate(divide="ignore"):
            log_tail_N = np.log(tail_N).astype(np.float32)
        return ResponseScores(
            status_T=status_T,
            positions_N=positions_N,
            support_ids_NK=ids_NK,
            support_logprobs_NK=top_NK,
            sampled_logprobs_N=logprobs_NV.gather(1, sampled_N[:, None])[:, 0].numpy(),
            log_tail_mass_N=log_tail_N,
            entropies_N=-(logprobs_NV.exp() * logprobs_NV).sum(dim=1).numpy() if self.computes_entropies else None,
            unmapped_mass=self.unmapped_mass,
            candidate_ids_NC=candidates_NC,
            candidate_logprobs_NC=None
            if candidates_NC is None
            else np.take_along_axis(logprobs_NV.numpy(), candidates_NC, 1),
        )

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, StudentIds | TeacherIds):
            return [int(token) for token in prompt.ids]
        return self.teacher.encode_prompt(prompt.text if isinstance(prompt, Text) else prompt.messages)


def _settle(future: Future[GroupScores], outcome: GroupScores | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def teacher_info(teacher: Student, *, name: str = "tiny", max_model_len: int = 256) -> TeacherInfo:
    return TeacherInfo(
        name=name,
        revision="1",
        engine="fake",
        model="tiny",
        dtype="float32",
        device="cpu",
        vocabulary_size=259,
        max_model_len=max_model_len,
        tokenizer_id=teacher.tokenizer_id,
        vocabulary_id=vocabulary_id(teacher.tokenizer.backend_tokenizer.to_str()),
        special_tokens=(),
        end_token_ids=(2,),
        has_chat_template=True,
        capabilities=Capabilities(
            temperature=True,
            batch_invariant=True,
            candidates=True,
            other_tokenizers=True,
            entropies=True,
            weight_updates=False,
        ),
        tokenizer_json="",
    )


def agreement_with(
    teacher: Student,
    *,
    report: AlignmentReport = REPORT,
    policy: SegmentationPolicy = SegmentationPolicy.MASK,
    paper_token_ids: tuple[int, ...] = (),
) -> Agreement:
    return Agreement(
        teacher=teacher_info(teacher),
        registration=Registration(tokenizer_id="registered", report=report),
        policy=policy,
        paper_token_ids=paper_token_ids,
    )
