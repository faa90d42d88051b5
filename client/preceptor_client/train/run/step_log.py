"""Writes a step down: its row of metrics, the measures by position, turn, task and teacher, and a few rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from preceptor_client.train.instruments.breakdown import breakdown_rows, teacher_breakdown_rows
from preceptor_client.train.instruments.measures import measure, reward_measures
from preceptor_client.train.instruments.table import position_table, teacher_tables
from preceptor_client.train.learner.columns import StudentColumns, unmeasured
from preceptor_client.train.learner.learner import StepResult
from preceptor_client.train.record.episode_log import EpisodeLog
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.record.rollout_log import RolloutLog, RolloutRow, is_kept, rollout_rows
from preceptor_client.train.run.config import RunSection
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.views import TeacherView, view_responses


class StepLog:
    """Writes steps as they are done."""

    def __init__(
        self,
        student: Student,
        *,
        config: RunSection,
        metrics: Metrics,
        rollouts: RolloutLog,
        episodes: EpisodeLog | None = None,
    ) -> None:
        self._student = student
        self._config = config
        self._metrics = metrics
        self._rollouts = rollouts
        self._episodes = episodes

    def write(
        self,
        step: int,
        scored: Sequence[ScoredEpisode],
        *,
        view: TeacherView,
        num_refused_groups: int,
        num_failed_groups: int,
        num_failed_episodes: int,
        teacher_revision: str,
        result: StepResult | None,
        seconds: dict[str, float],
    ) -> MetricRow:
        """Writes everything, the step's own row last, and returns that row. `result` is None where the step was
        skipped."""
        columns = result.columns if result else [unmeasured(len(one.scores.positions_N)) for one in scored]
        ends = self._student.end_token_ids
        table = position_table(scored, columns, end_token_ids=ends)
        row: MetricRow = {
            "kind": "step",
            "step": step,
            **measure(table),
            **reward_measures(table),
            # The weighted mean that was minimised.
            "loss": result.loss if result else None,
            "is_skipped": result is None,
            "num_weighted_positions": result.num_positions if result else 0,
            "scored_share": view.scored_share,
            "unmapped_mass": view.unmapped_mass,
            "teacher_revision": teacher_revision,
            "credit_loss": result.credit_loss if result else None,
            "gradient_norm": result.gradient_norm if result else None,
            "learning_rate": result.learning_rate if result else None,
            **asdict(view_responses([one.episode for one in scored])),
            "num_refused_groups": num_refused_groups,
            "failed_groups": num_failed_groups,
            "num_failed_episodes": num_failed_episodes,
            "num_single_support": view.num_single_support,
            **{f"num_{status}": number for status, number in view.num_by_status.items()},
            **seconds,
        }
        if self._episodes:
            self._episodes.write(step, [one.episode for one in scored])
        if is_kept(step, self._config.num_steps):
            self._rollouts.write(self._rollout_rows(step, scored, columns))
        for breakdown in breakdown_rows(table, step=step):
            self._metrics.write(breakdown)
        for breakdown in teacher_breakdown_rows(teacher_tables(scored, columns, end_token_ids=ends), step=step):
            self._metrics.write(breakdown)
        self._metrics.write(row)
        return row

    def _rollout_rows(
        self, step: int, scored: Sequence[ScoredEpisode], columns: Sequence[StudentColumns]
    ) -> Sequence[RolloutRow]:
        return rollout_rows(
            step,
            scored,
            columns,
            decode=self._student.decode_all,
            num_rollouts=self._config.sample_rollouts,
        )
