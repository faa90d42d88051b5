"""Puts a run together from its parts: the only place that knows all of them. Trains nothing, and opens nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.learner.learner import Learner, TaskLoss
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.learner.mean_loss import MeasuredLoss
from preceptor_client.train.objective.asking import asking_of
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.objective.weights import PositionWeights
from preceptor_client.train.rollout.engine import OnBad, RolloutEngine
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import StudentEngine
from preceptor_client.train.rollout.policy import HfPolicy
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.task_parts import TaskParts, make_parts
from preceptor_client.train.run.task_run import Roller, TaskRun
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.ensemble import Ensemble
from preceptor_client.train.teacher.failed_groups import FailureLimit
from preceptor_client.train.teacher.questions import Questions
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.train.teacher.scoring import OneTeacher, Scoring, Selection

_DRAWS_OF_NO_STEP = 0
"""Steps count from 1: every measurement draws alike, and like no step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """What all tasks of a run have in common."""

    config: RunConfig
    student: Student
    scorers: Mapping[str, Scorer]
    """By the names of the teachers in the settings."""
    bad: BadExamples
    stop: StopRequest
    start: Student | None = None
    """The untrained student, frozen, where an objective needs it."""
    weigh: PositionWeights | None = None
    """A caller's own weights, in place of [weights]."""

    def context(self, step: int) -> StepContext:
        """What parts may know of a step."""
        return StepContext(
            step=step,
            num_steps=self.config.run.num_steps,
            tokenizer=self.student.tokenizer,
            end_token_ids=self.student.end_token_ids,
        )

    def task_loss(self, task: Task) -> TaskLoss:
        """What the learner needs of a task."""
        reference = None
        if self.start and task.objective.needs_reference:
            reference = Reference(self.start, temperature=task.temperature)
        return TaskLoss(
            loss=Loss(
                self.student,
                config=task.objective,
                temperature=task.temperature,
                credit=task.credit,
                reference=reference,
                by_teacher=task.combine == "divergences" and len(task.teachers) > 1,
            ),
            shaping=Shaping.of_settings(
                objective=task.objective, weights=task.weights, credit=task.credit, weigh=self.weigh
            ),
        )

    def learner(self, losses: Mapping[str, TaskLoss]) -> Learner:
        """The learner of all tasks, by their names."""
        return Learner(self.student, config=self.config.optimizer, tasks=losses, context=self.context)

    def roller(self, task: Task, parts: TaskParts) -> Roller:
        """Rolls a task's examples out, as a step does."""
        return Roller(
            engine=parts.engine,
            config=task.rollout,
            seed=task.seed,
            policy=self._policy(task, parts.engine),
            make_environment=parts.make_environment,
            rewards=parts.rewards,
            stop=self.stop,
        )

    def scoring(
        self, task: Task, parts: TaskParts, *, agreements: Mapping[str, Agreement], is_measurement: bool = False
    ) -> Scoring:
        """Asks the task's teachers; `agreements` by their names."""
        size = self.student.vocabulary_size
        questions: dict[str, Questions] = {}
        for name, teacher in task.teachers.items():
            asking = asking_of(
                task.objective,
                top_k=teacher.top_k,
                num_common=min(size, agreements[name].teacher.vocabulary_size),
                is_measurement=is_measurement,
            )
            questions[name] = Questions(
                self.scorers[name],
                config=teacher,
                agreement=agreements[name],
                top_k=asking.top_k,
                num_student_tokens=asking.num_student_tokens,
                vocabulary_size=size,
                name=name,
                prompt_maker=parts.prompt_makers.get(name),
                decode=self.student.decode,
                stop=self.stop,
            )
        selection = Selection(rule=asking.support, min_support=asking.min_support, vocabulary_size=size)
        if len(questions) == 1:
            ((name, only),) = questions.items()
            named = name if task.has_named_teachers else ""
            return OneTeacher(only, selection=selection, name=named, task=task.name)
        return Ensemble(
            questions,
            selection=selection,
            shares=task.teacher_shares,
            rule=parts.share_rule,
            is_mixture=task.combine == "mixture",
            task=task.name,
        )

    def heldout(
        self,
        task: Task,
        parts: TaskParts,
        *,
        examples: Sequence[Example],
        agreements: Mapping[str, Agreement],
        loss: TaskLoss,
    ) -> Heldout:
        """Measures a task: the student itself writes, once for each example."""
        engine = StudentEngine()
        roller = Roller(
            engine=engine,
            config=task.rollout.model_copy(update={"responses_per_prompt": 1}),
            seed=task.seed,
            policy=self._policy(task, engine),
            make_environment=parts.make_environment,
            rewards=parts.rewards,
            stop=self.stop,
        )

        def roll_out(some: Sequence[Example], on_bad: OnBad) -> Iterator[list[Episode]]:
            return roller.roll_out(some, step=_DRAWS_OF_NO_STEP, on_bad=on_bad)

        return Heldout(
            self.student,
            examples=examples,
            config=task.evaluation,
            roll_out=roll_out,
            scoring=self.scoring(task, parts, agreements=agreements, is_measurement=True),
            loss=MeasuredLoss(loss, size=self.config.optimizer.micro_batch_size, context=self.context),
            is_answered=task.environment is None,
            has_rewards=bool(task.environment or task.rewards),
            task=task.name,
            source=task.source("heldout"),
            bad=self.bad,
            limit=FailureLimit(max_share=self.config.run.max_failed_groups),
            stop=self.stop,
        )

    def task_run(
        self,
        task: Task,
        *,
        examples: Sequence[Example],
        heldout: Sequence[Example],
        agreements: Mapping[str, Agreement],
        loss: TaskLoss,
        parts: TaskParts | None = None,
    ) -> TaskRun:
        """A task, put together."""
        parts = parts or make_parts(task)
        return TaskRun(
            task=task,
            stream=PromptStream(
                examples, prompts_per_step=self.config.rollout.prompts_per_step, seed=self.config.run.seed
            ),
            roller=self.roller(task, parts),
            scoring=self.scoring(task, parts, agreements=agreements),
            heldout=self.heldout(task, parts, examples=heldout, agreements=agreements, loss=loss),
        )

    def _policy(self, task: Task, engine: RolloutEngine) -> HfPolicy:
        return HfPolicy(
            self.student,
            loss_temperature=task.temperature,
            num_top_ids=max(task.num_student_tokens, getattr(engine, "num_top_ids", 0)),
        )
