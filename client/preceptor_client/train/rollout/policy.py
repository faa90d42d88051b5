"""Implements `Policy`, which engines write with, by the student and transformers. Knows nothing of steps."""

# N = positions, V = vocabulary, K = likeliest tokens kept, T = tokens of a response, D = hidden size

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from preceptor.json_values import Json
from transformers import PreTrainedTokenizerFast

from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.rollout.engine import Written
from preceptor_client.train.student.encoding import encode_example
from preceptor_client.train.student.generation import Sampling, generate_recorded
from preceptor_client.train.student.head.dense import CHUNK_ELEMENTS
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student, num_rows_of
from preceptor_client.train.student.view import StudentView, joined_views


class HfPolicy:
    """A `Policy`. What it writes is a function of its weights, the arguments and the seed; the global random state is
    left alone."""

    def __init__(
        self,
        student: Student,
        *,
        loss_temperature: float = 1.0,
        num_top_ids: int = 0,
    ) -> None:
        """`loss_temperature` is that of the student's logprobs in a view; `num_top_ids` asks for that many of its
        likeliest tokens there."""
        self._student = student
        self._loss_temperature = loss_temperature
        self._num_top_ids = num_top_ids

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._student.tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        return self._student.end_token_ids

    @property
    def num_ids(self) -> int:
        return num_rows_of(self._student.model)

    @property
    def max_length(self) -> int:
        return self._student.max_length

    @property
    def chat_template_kwargs(self) -> Mapping[str, Json]:
        return self._student.chat_template_kwargs

    def encode(self, prompt: ExamplePrompt, *, example: Example) -> tuple[int, ...]:
        """As `Policy.encode`."""
        return tuple(encode_example(self._student, example, prompt=prompt))

    def decode(self, ids: Sequence[int]) -> str:
        """As `Policy.decode`."""
        return self._student.decode(ids)

    def write(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, top_p: float, max_new_tokens: int, seed: int
    ) -> list[Written]:
        """As `Policy.write`."""
        devices = [self._student.device] if self._student.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            responses, views = generate_recorded(
                self._student,
                prompts,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(temperature=temperature, top_p=top_p),
                recorder=StudentRecorder(temperature=self._loss_temperature, num_top_ids=self._num_top_ids),
            )
        return [
            Written(
                ids=tuple(response),
                finish_reason="stop" if response[-1] in self._student.end_token_ids else "length",
                student=view,
            )
            for response, view in zip(responses, views, strict=True)
        ]

    @torch.no_grad()
    def view(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[StudentView]:
        """As `Policy.view`: one forward over all of them."""
        sequences = [
            ScoredSequence(prompt_ids=prompt, response_ids=response, positions_N=np.arange(len(response)))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        hidden_ND = scored_hidden_states(self._student, sequences)
        sampled_N = torch.tensor([token for response in responses for token in response], device=hidden_ND.device)
        whole = joined_views(list(self._views(hidden_ND, sampled_N)))
        starts = np.cumsum([0, *map(len, responses)]).tolist()
        return [
            StudentView(
                logprobs_T=whole.logprobs_T[first:last],
                entropies_T=whole.entropies_T[first:last],
                top_ids_TK=None if whole.top_ids_TK is None else whole.top_ids_TK[first:last],
            )
            for first, last in pairwise(starts)
        ]

    def _views(self, hidden_ND: torch.Tensor, sampled_N: torch.Tensor) -> Iterator[StudentView]:
        """Of a chunk of positions each, so that few rows of the vocabulary's size exist at once. The recorder computes
        the same numbers while the student writes."""
        size = max(1, CHUNK_ELEMENTS // self._student.vocabulary_size)
        for rows_ND, ids_N in zip(torch.split(hidden_ND, size), torch.split(sampled_N, size), strict=True):
            recorder = StudentRecorder(temperature=self._loss_temperature, num_top_ids=self._num_top_ids)
            recorder(ids_N[:, None], self._student.head.logits(rows_ND))
            yield joined_views(recorder.finish(ids_N, lengths=[1] * len(ids_N)))
