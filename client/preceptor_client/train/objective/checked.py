"""Wraps an objective and checks its inputs and its losses; errors name objective.kind."""

# N = positions

from __future__ import annotations

from dataclasses import dataclass

import torch

from preceptor_client.errors import PreceptorError
from preceptor_client.objectives import Objective, Positions
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.objective.config import ObjectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedObjective:
    """The objective may be a user's own."""

    name: str
    """objective.kind."""
    objective: Objective

    @property
    def needs_normaliser(self) -> bool:
        return self.objective.needs_normaliser

    @property
    def min_support(self) -> int:
        return self.objective.min_support

    def loss(self, at: Positions) -> torch.Tensor:
        """Loss of every position, nats, shape [N]. Raises ValueError, which names objective.kind, for student logprobs
        without the normaliser that it needs, where the objective fails, and where what it gives is no such loss."""
        if self.needs_normaliser and not at.is_normalised:
            raise ValueError(
                f"objective.kind={self.name} needs student logprobs over the whole vocabulary, these are up to a "
                f"constant per position: subtract the log partition first"
            )
        losses_N = self._given(at)
        if problem := _problem(losses_N, at):
            raise InvalidPartError(
                f"objective.kind={self.name}: {type(self.objective).__name__}.loss {problem} ({_shapes(at)})"
            )
        return losses_N

    def _given(self, at: Positions) -> torch.Tensor:
        try:
            return self.objective.loss(at)
        except PreceptorError:
            raise
        except Exception as error:  # a user's objective may fail with anything
            # torch's own: out of memory, and how its checkpoints end a part that is computed again.
            if type(error).__module__.partition(".")[0] == "torch":
                raise
            words = str(error) if isinstance(error, ValueError) else f"failed: {error!r}"
            raise InvalidPartError(f"objective.kind={self.name}: {words} ({_shapes(at)})") from error


def objective_for(config: ObjectiveConfig) -> CheckedObjective:
    """The objective of `config.kind`. Raises InvalidPartError, which names the key."""
    return CheckedObjective(name=config.kind, objective=config.make())


def _problem(losses_N: object, at: Positions) -> str:
    """What is wrong with a loss; empty where nothing is."""
    expected = (len(at.old_logprobs_N),)
    if not isinstance(losses_N, torch.Tensor):
        return f"gave a {type(losses_N).__name__}: give a tensor of shape {expected}, one loss per position"
    if tuple(losses_N.shape) != expected:
        return f"gave shape {tuple(losses_N.shape)}: give {expected}, one loss per position"
    if not losses_N.is_floating_point():
        return f"gave {losses_N.dtype}: give floating-point numbers"
    has_gradient = at.student_logprobs_NK.requires_grad and at.student_sampled_logprobs_N.requires_grad
    if torch.is_grad_enabled() and has_gradient and not losses_N.requires_grad:
        return "gave a loss without gradient: compute it from the student's logprobs, not detached"
    return ""


def _shapes(at: Positions) -> str:
    return f"positions: student {tuple(at.student_logprobs_NK.shape)}, teacher {tuple(at.teacher_logprobs_NK.shape)}"
