"""The loop: roll out, score, learn; measure and save when due. Owns the order of things and none of their insides."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from preceptor_client.errors import PreceptorError
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.errors import RunDirectoryError, TrainingStoppedError
from preceptor_client.train.evaluation.evaluate import PromptsOf
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.learner.checkpoint import load_optimizer, save_checkpoint
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step
from preceptor_client.train.learner.learner import Learner
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.run.config import RunSection
from preceptor_client.train.run.display import Display
from preceptor_client.train.run.endings import Endings, NotWrittenError
from preceptor_client.train.run.hooks import Hooks, RunState, StepDone
from preceptor_client.train.run.spans import StepSpan
from preceptor_client.train.run.step_log import StepLog
from preceptor_client.train.run.task_run import Failures, TaskRun
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.tasks.mixing import TaskMix
from preceptor_client.train.teacher.failed_groups import FailureLimit, GroupCount, RecentGroups
from preceptor_client.train.teacher.revisions import Revisions
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.train.teacher.views import TeacherView, advice, view_teacher

_log = logging.getLogger(__name__)

LOW_SCORED_SHARE = 0.5
"""Below it a step learns from less than half of what the student wrote, and the user is told once."""


class Trainer:
    """One run, from the step that it is at to its last."""

    def __init__(
        self,
        student: Student,
        *,
        config: RunSection,
        tasks: Sequence[TaskRun],
        mix: TaskMix,
        learner: Learner,
        scorers: Mapping[str, Scorer],
        hooks: Hooks,
        bad: BadExamples,
        revisions: Revisions,
        metrics: Metrics,
        log: StepLog,
        display: Display,
        stop: StopRequest,
        checkpoint: Path | None = None,
    ) -> None:
        """`checkpoint` is the one that `student` was loaded from; `bad` decides what a bad example does; `stop` may ask
        the run to end early."""
        self.student = student
        self.config = config
        self.tasks = tasks
        self.mix = mix
        self.learner = learner
        self.scorers = scorers
        self.hooks = hooks
        self.bad = bad
        self.revisions = revisions
        self.metrics = metrics
        self.log = log
        self.display = display
        self.stop = stop
        self.step = 0
        self.recent_groups = RecentGroups()
        self.endings = Endings(
            config,
            teachers=[teacher for task in tasks for teacher in task.task.teachers.values()],
            save=self.save,
            display=display,
        )
        self._has_warned_of_few_scores = False
        self._is_unsaved = False
        if checkpoint:
            self._resume(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        self.step = checkpoint_step(checkpoint)
        load_optimizer(checkpoint, optimizer=self.learner.optimizer)
        self.hooks.load(checkpoint)
        self.recent_groups.load(checkpoint)
        if self.step > self.config.num_steps:
            raise RunDirectoryError(
                f"{self.config.directory} is at step {self.step} already: raise run.num_steps={self.config.num_steps}"
            )

    def run(self) -> Path:
        """Trains up to `run.num_steps`; returns the folder of the trained model. Raises StopRequestedError where it was
        asked to stop before, once the step that it is at is saved."""
        with self.stop.heeded():
            try:
                return self._run()
            except PreceptorError as error:
                ended = self.endings.of(error, step=self.step)
                if ended is error:
                    raise
                raise ended from error

    def _run(self) -> Path:
        num_steps = self.config.num_steps
        self.hooks.on_start(self._state())
        if self.step == 0:
            self._measure("student")
            self._measure("teacher")
        self.display.begin(step=self.step, num_steps=num_steps)
        self._measure_if_due()  # a run that ended after this step may have had no time to
        while self.step < num_steps:
            self.stop.check()
            self.display.step(self.train_step())
            if self._is_unsaved or self.step % self.config.checkpoint_every_steps == 0:
                self._save_or_go_on()
            self._measure_if_due()
        folder = self.save()
        self._measure("student")
        return folder

    def train_step(self) -> MetricRow:
        """One optimizer step, written down; returns its row of metrics. An error leaves the weights and the step as
        they were."""
        span = StepSpan()
        with span.step(self.step + 1):
            return self._train_step(span)

    def _train_step(self, span: StepSpan) -> MetricRow:
        step = self.step + 1
        started = time.perf_counter()
        failures = [task.failures(self.bad, step=step) for task in self.tasks]
        groups = GroupCount()
        try:
            with span.part("rollout"), self.stop.checked_by(self.student.base):
                num_episodes = self._roll_out(step, failures, groups=groups, span=span)
            rolled_out = time.perf_counter()
            with span.asking():
                scored = self._gather(failures, groups=groups)
        finally:
            for task in self.tasks:
                task.scoring.cancel()
            self.display.notice("")
        span.answered()
        answered = time.perf_counter()
        self._tell_failed_episodes(failures, num_episodes=num_episodes, step=step)
        self._tell_failed_groups(groups, step=step)
        view = view_teacher(scored)
        self._stop_at_non_finite(view, step=step)
        if scored:
            self._warn_of_few_scores(view, step=step)
        with span.part("learn"):
            result = self.learner.step(scored, step=step)
        finished = time.perf_counter()
        self.step = step
        self.recent_groups.add(groups.outcomes)
        if result is None:
            _log.warning("step skipped, no position has a score: step=%d statuses=%s", step, view.num_by_status)
        with self.endings.writing():
            row = self.log.write(
                step,
                scored,
                view=view,
                num_refused_groups=sum(one.skipping.num_skipped for one in failures),
                num_failed_groups=len(groups.failed),
                num_failed_episodes=sum(len(one.episodes) for one in failures),
                teacher_revision=self.revisions.see(scored, step=step),
                result=result,
                seconds={
                    "rollout_seconds": rolled_out - started,
                    "score_wait_seconds": answered - rolled_out,
                    "train_seconds": finished - answered,
                    "step_seconds": finished - started,
                },
            )
        self._call_hooks(row, result.scored if result else scored)
        return row

    def _roll_out(self, step: int, failures: Sequence[Failures], *, groups: GroupCount, span: StepSpan) -> int:
        """Rolls the prompts of the step out, and has the teachers score each batch while the next is written. Returns
        the number of episodes."""
        num_episodes = slot = 0
        for task, (first, count), bad in zip(self.tasks, self.mix.step(step), failures, strict=True):
            if not count:
                continue
            examples = task.stream.deal(first, count)
            for batch in task.roller.roll_out(examples, step=step, on_bad=bad, first_slot=slot):
                with span.asking():
                    task.scoring.submit(batch, name=f"step-{step}")
                groups.add(batch)
                num_episodes += len(batch)
            slot += count
        return num_episodes

    def _gather(self, failures: Sequence[Failures], *, groups: GroupCount) -> list[ScoredEpisode]:
        """Waits for the teachers' answers."""
        scored: list[ScoredEpisode] = []
        for task, bad in zip(self.tasks, failures, strict=True):
            scored += task.scoring.gather(on_refused=bad.skipping, on_failed=groups.fail)
        return scored

    def save(self) -> Path:
        """Saves the step that the run is at. Raises NotWrittenError where the disk does not take it."""
        with self.endings.writing():
            folder = save_checkpoint(
                self.config.directory,
                step=self.step,
                student=self.student,
                optimizer=self.learner.optimizer,
                keep=self.config.keep_checkpoints,
                also=self._save_more,
            )
        self._is_unsaved = False
        return folder

    def _save_more(self, checkpoint: Path) -> None:
        self.hooks.save(checkpoint)
        self.recent_groups.save(checkpoint)

    def _save_or_go_on(self) -> None:
        """Saves between two steps. A full disk costs no step: the next one tries again."""
        try:
            self.save()
        except NotWrittenError as error:
            self._is_unsaved = True
            _log.warning("checkpoint not saved: step=%d error=%s", self.step, error)
            self.display.warning(f"step {self.step} is not saved, and the run goes on: {error}")

    def measure(self, heldout: Heldout, prompts: PromptsOf = "student") -> MetricRow:
        """Measures one task's held-out examples as the student is; writes nothing."""
        self.display.notice(f"answering {len(heldout.examples)} held-out examples")
        try:
            return heldout.measure(step=self.step, prompts=prompts)
        finally:
            self.display.notice("")

    def _measure_if_due(self) -> None:
        if not self.step:
            return
        for task in self.tasks:
            every_steps = task.task.evaluation.every_steps
            if every_steps and self.step % every_steps == 0:
                self._measure_one(task, "student")

    def _measure(self, prompts: PromptsOf) -> None:
        for task in self.tasks:
            if prompts == "student" or task.task.evaluation.teacher_prompts:
                self._measure_one(task, prompts)

    def _measure_one(self, task: TaskRun, prompts: PromptsOf) -> None:
        """Measures the held-out examples of a task, unless that is done for this step."""
        kind = "heldout" if prompts == "student" else "heldout_teacher"
        if not task.heldout.examples or self.metrics.has(kind=kind, step=self.step, task=task.task.name):
            return
        row = self.measure(task.heldout, prompts)
        with self.endings.writing():
            self.metrics.write(row)
        self.display.heldout(row)
        if num_failed := row.get("num_failed_episodes"):
            self.display.warning(
                f"step {self.step}: {num_failed} held-out episode(s) failed, and are not in what was measured; the log "
                "names each"
            )

    def _call_hooks(self, row: MetricRow, scored: Sequence[ScoredEpisode]) -> None:
        state = self._state()
        columns = {field.name: getattr(state, field.name) for field in fields(state)}
        self.hooks.on_step(StepDone(**columns, row=row, scored=scored))

    def _state(self) -> RunState:
        return RunState(
            step=self.step,
            num_steps=self.config.num_steps,
            student=self.student,
            optimizer=self.learner.optimizer,
            directory=self.config.directory,
            teachers=self.scorers,
            measure=lambda: [self.measure(task.heldout) for task in self.tasks if task.heldout.examples],
        )

    def _tell_failed_episodes(self, failures: Sequence[Failures], *, num_episodes: int, step: int) -> None:
        """Names them; raises TrainingStoppedError where too many failed."""
        failed = [error for one in failures for error in one.episodes]
        if not failed:
            return
        for error in failed:
            _log.warning("episode failed: step=%d error=%s", step, error)
        self.display.warning(f"step {step} goes on without {len(failed)} episode(s); the first: {failed[0]}")
        share, limit = len(failed) / (len(failed) + num_episodes), self.config.max_failed_episodes
        if share > limit:
            raise TrainingStoppedError(
                f"step {step}: {share:.0%} of the episodes failed, more than run.max_failed_share={limit}; the first: "
                f"{failed[0]}"
            )

    def _tell_failed_groups(self, groups: GroupCount, *, step: int) -> None:
        """Names them; raises TrainingStoppedError where teachers failed on too many of late."""
        failed = groups.failed
        if not failed:
            return
        for one in failed:
            _log.warning(
                "group failed: step=%d example=%s teacher=%s reason=%s incident=%r",
                *(step, one.example, one.teacher, one.error.reason, one.error.incident),
            )
        limit = FailureLimit(max_share=self.config.max_failed_groups)
        if excess := limit.excess(self.recent_groups.with_step(groups.outcomes)):
            raise TrainingStoppedError(f"step {step}: {excess}; the first of this step: {failed[0]}")
        self.display.warning(f"step {step} goes on without {len(failed)} group(s); the first: {failed[0]}")

    def _warn_of_few_scores(self, view: TeacherView, *, step: int) -> None:
        if view.scored_share >= LOW_SCORED_SHARE or self._has_warned_of_few_scores:
            return
        self._has_warned_of_few_scores = True
        text = f"step {step}: only {view.scored_share:.0%} of the positions have a score; {advice(view)}"
        _log.warning("%s", text)
        self.display.warning(text)

    def _stop_at_non_finite(self, view: TeacherView, *, step: int) -> None:
        limit = self.config.max_non_finite_share
        if view.non_finite_share > limit:
            raise TrainingStoppedError(
                f"step {step}: {view.non_finite_share:.0%} of the positions came back from the teacher as NaN or "
                f"infinity, more than run.max_non_finite_share={limit}: the teacher's numbers overflow (its dtype?)"
            )
