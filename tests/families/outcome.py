"""What becomes of a family whose model is given to the server: exact scores, or a refusal that names a setting."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preceptor.wire import LogprobDtype
from preceptor_client import GroupScores, TeacherClient, TeacherIds
from preceptor_server.errors import StartupError

from tests.families.cases import Group, groups_for
from tests.families.features import features_of_weights
from tests.families.oracle import Oracle, largest_difference
from tests.families.teacher import running_teacher
from tests.families.zoo import Family, build, load

TOLERANCE_NATS = 1e-4
TOP_K = 16

Kind = Literal["exact packed", "exact sequential", "refused", "fails"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one family."""

    kind: Kind
    largest_nats: float = 0.0
    """The largest difference of any column at any position."""
    features: tuple[str, ...] = ()
    """What is on, in words."""
    message: str = ""
    """Why it was refused."""


FAILED = Outcome(kind="fails")


async def outcome_of(family: Family, folder: Path) -> Outcome:
    """Builds the family's model in `folder`, serves it, and holds every answer against transformers.

    Raises AssertionError where an answer is wrong, or where a refusal names no setting; and whatever else went wrong.
    """
    build(family, folder)
    groups = groups_for(family.thresholds)
    try:
        async with running_teacher(folder) as teacher, TeacherClient(teacher.address) as client:
            alone = [await _score(client, group) for group in groups]
            together = await asyncio.gather(*(_score(client, group) for group in groups))
    except StartupError as error:
        return _refused(str(error).replace(str(folder), family.name))
    model = load(family, folder)
    oracle, features = Oracle(model), features_of_weights(name for name, _ in model.named_parameters())
    worst = max(
        _check(oracle, group, answer, what=what)
        for what, answers in ((f"{teacher.packing}, alone", alone), (f"{teacher.packing}, in a batch", together))
        for group, answer in zip(groups, answers, strict=True)
    )
    return Outcome(
        kind="exact packed" if teacher.packing == "packed" else "exact sequential",
        largest_nats=worst,
        features=(*family.features, *features),
    )


def _refused(message: str) -> Outcome:
    assert re.search(r"\b(engine|limits|scheduler)\.\w+", message), f"refused, and no setting is named: {message}"
    return Outcome(kind="refused", message=message)


async def _score(client: TeacherClient, group: Group) -> GroupScores:
    return await client.score(
        TeacherIds(group.prompt_P),
        group.responses,
        candidate_ids=group.candidates,
        top_k=TOP_K,
        temperature=group.temperature,
        logprob_dtype=LogprobDtype.F32,
    )


def _check(oracle: Oracle, group: Group, answer: GroupScores, *, what: str) -> float:
    """Every response of the group; returns the largest difference."""
    worst = 0.0
    for response_T, candidates_TC, scores in zip(group.responses, group.candidates, answer.responses, strict=True):
        oracle_TV = oracle.logprobs(group.prompt_P, response_T, temperature=group.temperature)
        difference = largest_difference(scores, oracle_TV, response_T, candidates_TC)
        where = f"{what}: {len(response_T)} tokens after {len(group.prompt_P)}: off by {difference:.3g}"
        assert difference <= TOLERANCE_NATS, where
        worst = max(worst, difference)
    return worst
