"""Applies the parts of a run to a scored step: extrapolation, credit and weights, and reduces them to terms.

Computes no loss and knows no student.
"""

# N = scored positions of an episode

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig, make_weights
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.credit import CreditRule, checked_credit
from preceptor_client.train.objective.extrapolation import StrengthRule, checked_strengths
from preceptor_client.train.objective.per_position import asked
from preceptor_client.train.objective.reduction import Reduction, Term, WeightArray
from preceptor_client.train.objective.weights import CalledWeights, PositionWeights, WeightRule, checked_weights
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTerms:
    """The terms of a step's loss."""

    objective: Term
    credit: Term | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return self.objective.is_empty and (self.credit is None or self.credit.is_empty)

    @property
    def num_positions(self) -> int:
        """Positions that count in a term."""
        terms = [term for term in (self.objective, self.credit) if term is not None and not term.is_empty]
        columns = zip(*(term.weights for term in terms), strict=True)
        return sum(int((sum(weights) > 0).sum()) for weights in columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapedStep:
    """A step, ready for the learner."""

    scored: list[ScoredEpisode]
    """With credit and strengths, where the run has them."""
    terms: StepTerms


class Shaping:
    """The parts of one run."""

    def __init__(
        self,
        *,
        reduction: Reduction,
        coefficient: float = 1.0,
        weights: WeightRule | None = None,
        credit: CreditRule | None = None,
        credit_coefficient: float = 1.0,
        is_credit_weighted: bool = False,
        strengths: StrengthRule | None = None,
    ) -> None:
        """`coefficient` is that of the objective. Weights multiply the objective's term, and the credit's where
        `is_credit_weighted`."""
        self._reduction = reduction
        self._coefficient = coefficient
        self._weights = weights
        self._credit = credit
        self._credit_coefficient = credit_coefficient
        self._is_credit_weighted = is_credit_weighted
        self._strengths = strengths

    @classmethod
    def of_settings(
        cls,
        *,
        objective: ObjectiveConfig,
        weights: PartConfig | None = None,
        credit: CreditConfig | None = None,
        weigh: PositionWeights | None = None,
    ) -> Self:
        """As the settings say; `weigh` is a caller's own function in place of [weights]."""
        if weights is not None and weigh is not None:
            raise ValueError("weights.kind is set and train is given weigh=: leave one out")
        return cls(
            reduction=objective.make_reduction(),
            coefficient=objective.coefficient,
            weights=CalledWeights(weigh) if weigh else make_weights(weights),
            credit=credit.make() if credit else None,
            credit_coefficient=credit.coefficient if credit else 1.0,
            is_credit_weighted=credit is not None and credit.weighted,
            strengths=objective.make_strengths(),
        )

    def shape(self, scored: Sequence[ScoredEpisode], at: StepContext) -> ShapedStep:
        """A step to learn from. Raises InvalidWeightsError where what a part gives does not fit, and InvalidPartError
        where a part fails."""
        shaped = self._credited(self._strengthened(scored, at), at)
        given = self._weigh(shaped, at)
        nums = [len(one.scores.positions_N) for one in shaped]
        objective = self._reduction.term(nums, given=given, coefficient=self._coefficient)
        if self._credit is None:
            return ShapedStep(scored=shaped, terms=StepTerms(objective=objective))
        of_credit = self._reduction.term(
            nums, given=given if self._is_credit_weighted else None, coefficient=self._credit_coefficient
        )
        return ShapedStep(scored=shaped, terms=StepTerms(objective=objective, credit=_earned(of_credit, shaped)))

    def measure(self, scored: Sequence[ScoredEpisode], at: StepContext) -> ShapedStep:
        """Episodes to measure the objective on: without credit, and every position counts as the reduction says."""
        shaped = self._strengthened(scored, at)
        nums = [len(one.scores.positions_N) for one in shaped]
        return ShapedStep(scored=shaped, terms=StepTerms(objective=self._reduction.of_measurement.term(nums)))

    def _strengthened(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[ScoredEpisode]:
        rule = self._strengths
        if rule is None or not scored:
            return list(scored)
        key = f"objective.extrapolation_rule: {type(rule).__name__}"
        columns = asked(lambda: rule.strength(scored, at), key=key, check=checked_strengths, scored=scored)
        return [replace(one, strengths_N=strengths_N) for one, strengths_N in zip(scored, columns, strict=True)]

    def _credited(self, scored: list[ScoredEpisode], at: StepContext) -> list[ScoredEpisode]:
        rule = self._credit
        if rule is None or not scored:
            return scored
        key = f"credit.kind: {type(rule).__name__}.credit"
        columns = asked(lambda: rule.credit(scored, at), key=key, check=checked_credit, scored=scored)
        return [replace(one, advantages_N=credit_N) for one, credit_N in zip(scored, columns, strict=True)]

    def _weigh(self, scored: list[ScoredEpisode], at: StepContext) -> list[WeightArray] | None:
        rule = self._weights
        if rule is None or not scored:
            return None
        key = f"weights.kind: {type(rule).__name__}.weigh"
        return asked(lambda: rule.weigh(scored, at), key=key, check=checked_weights, scored=scored)


def _earned(term: Term, scored: Sequence[ScoredEpisode]) -> Term:
    """The same, without weight where there is no credit to learn from: such positions add nothing to the sum."""
    weights = [
        np.where(one.advantages_N == 0, 0.0, weights_N) for one, weights_N in zip(scored, term.weights, strict=True)
    ]
    return replace(term, weights=weights)
