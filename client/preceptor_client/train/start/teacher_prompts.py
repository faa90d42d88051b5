"""Has the teacher read every prompt before the first step, without scoring anything: its template is on its server."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from preceptor_client.errors import GroupFailedError, PreceptorError
from preceptor_client.train.data.bad_examples import BadExamples, Source
from preceptor_client.train.data.examples import Example
from preceptor_client.train.student.encoding import encode_example
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.prompt_source import PromptSource
from preceptor_client.train.teacher.refusals import as_refusal
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.types import GroupScores, Prompt, StudentIds

_log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 32
MAX_SECONDS = 60.0
"""After these the first step is taken; what was not asked about by then is met at its step."""
_SECONDS_BETWEEN_NOTICES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    example: Example
    of: Source
    future: Future[GroupScores]


class TeacherPrompts:
    """Asks about one example after the other, a few at once."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        agreement: Agreement,
        config: TeacherConfig,
        prompts: PromptSource | None = None,
        student: Student,
        bad: BadExamples,
    ) -> None:
        """`prompts` says what the teacher will read."""
        self._scorer = scorer
        self._agreement = agreement
        self._config = config
        self._prompts = prompts or PromptSource(is_one_to_one=agreement.is_one_to_one)
        self._student = student
        self._bad = bad
        self._open: deque[_Question] = deque()
        self._failed: list[str] = []
        """What to tell of the prompts that the teacher failed on."""

    def check(self, examples: Sequence[tuple[Source, Example]], *, notice: Callable[[str], None]) -> tuple[str, ...]:
        """Warnings. Raises InvalidDataError where a bad example stops the run; a prompt of ids that all have
        counterparts is not asked about. One that the teacher fails on stays in the data: it is met at its step."""
        asked = [
            (of, example, prompt) for of, example in examples if (prompt := self._prompt(example, of=of)) is not None
        ]
        started = told = time.monotonic()
        try:
            for number, (of, example, prompt) in enumerate(asked):
                now = time.monotonic()
                if now - started > MAX_SECONDS:
                    return (
                        f"the teacher read {number} of {len(asked)} prompts in {now - started:.0f} s: whether it takes "
                        "the others shows at their steps",
                        *self._failures(),
                    )
                if now - told > _SECONDS_BETWEEN_NOTICES:
                    told = now
                    notice(f"having the teacher read the prompts: {number} of {len(asked)}")
                self._open.append(_Question(example=example, of=of, future=self._submit(prompt)))
                self._settle(down_to=MAX_IN_FLIGHT - 1)
            self._settle(down_to=0)
        finally:
            for question in self._open:
                question.future.cancel()
        return self._failures()

    def _failures(self) -> tuple[str, ...]:
        if not self._failed:
            return ()
        return (f"the teacher failed on {len(self._failed)} prompt(s); the first: {self._failed[0]}",)

    def _prompt(self, example: Example, *, of: Source) -> Prompt | None:
        """What to ask about; None where the answer is known."""
        if self._bad.holds(example, of=of):
            return None
        prompt = self._prompts.of_example(example)
        if not isinstance(prompt, StudentIds):
            return prompt
        if self._agreement.registration.report.mapped_share == 1.0:
            return None
        return StudentIds(encode_example(self._student, example))

    def _submit(self, prompt: Prompt) -> Future[GroupScores]:
        """A response of one token that is not to be scored: the server reads the prompt, and computes nothing."""
        return self._scorer.submit(
            prompt,
            [self._student.end_token_ids[:1]],
            score_masks=[[False]],
            top_k=self._config.top_k,
            teacher=self._config.name,
            adapter=self._config.adapter,
            tokenizer_id=self._agreement.registration.tokenizer_id,
            segmentation=self._agreement.policy,
            paper_token_ids=self._agreement.paper_token_ids,
            timeout_seconds=self._config.patience_seconds,
        )

    def _settle(self, *, down_to: int) -> None:
        """Waits until no more than so many questions are open, the oldest first."""
        while len(self._open) > down_to:
            question = self._open[0]
            try:
                question.future.result()
            except GroupFailedError as error:
                _log.warning(
                    "teacher failed on a prompt: example=%s reason=%s incident=%r",
                    *(question.example.name, error.reason, error.incident),
                )
                self._failed.append(f"{question.example.name}: {error}")
            except PreceptorError as error:
                refusal = as_refusal(error, example=question.example)
                if refusal is None:
                    raise
                self._bad.leave_out_unless_settled(refusal, of=question.of)
            self._open.popleft()
