"""Parts of the trainer for tests, put together as a run does it, for one task and one teacher."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.learner import Learner, TaskLoss
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.asking import asking_of
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reduction import Reduction, ReductionKind, Term, WeightArray
from preceptor_client.train.objective.shaping import ShapedStep, Shaping, StepTerms
from preceptor_client.train.objective.weights import PositionWeights, checked_weights
from preceptor_client.train.run.build import Builder
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.task_parts import make_parts
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.questions import Questions
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.train.teacher.scoring import OneTeacher, Selection


def scoring_for(
    scorer: Scorer,
    *,
    teacher: TeacherConfig,
    objective: ObjectiveConfig,
    agreement: Agreement,
    vocabulary_size: int,
    stop: StopRequest | None = None,
) -> OneTeacher:
    """Asks one teacher for what the objective needs."""
    num_common = min(vocabulary_size, agreement.teacher.vocabulary_size)
    asking = asking_of(objective, top_k=teacher.top_k, num_common=num_common)
    questions = Questions(
        scorer,
        config=teacher,
        agreement=agreement,
        top_k=asking.top_k,
        num_student_tokens=asking.num_student_tokens,
        vocabulary_size=vocabulary_size,
        stop=stop,
    )
    selection = Selection(rule=asking.support, min_support=asking.min_support, vocabulary_size=vocabulary_size)
    return OneTeacher(questions, selection=selection)


def learner_for(student: Student, *, config: OptimizerConfig, loss: Loss) -> Learner:
    """Learns one task, every position of which counts the same."""

    def context(step: int) -> StepContext:
        return StepContext(step=step, num_steps=step, tokenizer=student.tokenizer, end_token_ids=student.end_token_ids)

    task = TaskLoss(loss=loss, shaping=Shaping(reduction=Reduction()))
    return Learner(student, config=config, tasks={"": task}, context=context)


def one_task(scored: Sequence[ScoredEpisode], terms: StepTerms) -> dict[str, ShapedStep]:
    """A step of the only task, with its terms given."""
    return {"": ShapedStep(scored=list(scored), terms=terms)}


def position_weights(
    scored: Sequence[ScoredEpisode], *, reduction: ReductionKind, given: PositionWeights | None = None
) -> list[WeightArray]:
    """One array per rollout: the given weights, checked, times the reduction's own."""
    extra = checked_weights(given(scored), scored=scored) if given is not None else None
    nums = [len(one.scores.positions_N) for one in scored]
    return list(Reduction(kind=reduction).term(nums, given=extra).weights)


def weighted_mean(weights: Sequence[WeightArray]) -> StepTerms:
    """The mean under given weights, one array per episode, and no credit."""
    return StepTerms(objective=Term(weights=weights, denominator=sum(float(weights_N.sum()) for weights_N in weights)))


def heldout_for(
    student: Student, *, config: RunConfig, examples: Sequence[Example], scorer: Scorer, agreement: Agreement
) -> Heldout:
    """Measures the only task of the settings."""
    (task,) = config.all_tasks()
    (name,) = task.teachers
    builder = Builder(config=config, student=student, scorers={name: scorer}, bad=BadExamples(), stop=StopRequest())
    return builder.heldout(
        task,
        make_parts(task),
        examples=examples,
        agreements={name: agreement},
        loss=builder.task_loss(task),
    )
