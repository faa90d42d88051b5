"""What an objective is: one class that gives a loss per position, and says what it needs and what it fits.

Knows nothing of settings, batches or teachers.
"""

# N = positions, K = support size

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from preceptor_client.objectives.positions import Positions


class Objective(ABC):
    """A loss. Derive a class from it and name it in TOML, objective.kind = "package.module:Name"; the keyword arguments
    of its constructor are its options, objective.options. A subclass overrides what differs, by a class attribute
    (`needs_normaliser = False`) or by a property, where it depends on the options."""

    __slots__ = ()

    @abstractmethod
    def loss(self, at: Positions) -> torch.Tensor:
        """Loss of every position, nats, shape [N], with gradients. Raises ValueError for positions that the formula
        does not fit."""

    @property
    def needs_normaliser(self) -> bool:
        """Whether the student's probabilities count, and not only their ratios inside the support: `at.is_normalised`
        holds then. Without it the student's head is computed at the support alone."""
        return True

    @property
    def min_support(self) -> int:
        """Tokens that a position's support must hold for the loss to say anything there; other positions are left
        out."""
        return 1

    @property
    def is_over_whole_vocabulary(self) -> bool:
        """Whether the teacher is asked for all tokens at every position, whatever teacher.top_k says."""
        return False

    @property
    def takes_support(self) -> bool:
        """Whether the choice of the support (objective.support, objective.include_sampled) matters to it."""
        return not self.is_over_whole_vocabulary

    @property
    def takes_sampled(self) -> bool:
        """Whether the sampled token may be added to the support (objective.include_sampled)."""
        return True

    @property
    def takes_extrapolation(self) -> bool:
        """Whether it may have the extrapolated teacher as its target, whose logprobs are known up to a constant per
        position."""
        return False

    @property
    def is_estimate(self) -> bool:
        """Whether it estimates a sum over the vocabulary from the sampled token: its gradient is right in expectation
        where tokens are drawn from the student's whole distribution, at the temperature of the loss."""
        return False

    @property
    def caveat(self) -> str:
        """What its user should know before the first step; empty where that is nothing."""
        return ""
