"""Orders the replicas of a teacher for a call: by prompt, by load, and by which of them did not answer lately.

Makes no calls; of the network it knows whether a connection stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from preceptor_client.affinity import rendezvous_order
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.replica import Replica

REST_SECONDS = 1.0
"""For so long a replica that did not answer is asked last; for longer where no connection stands."""
LOAD_FACTOR = 1.25
"""A replica with more calls in flight than this times its fair share is passed over for the next in the prompt's order,
for all prompts may begin alike. Consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, arXiv
1608.01350."""
MIN_BUSY_CALLS = 8
"""With fewer calls in flight a replica is never passed over: a short queue costs less than a cold prefix."""


@dataclass(slots=True, eq=False)
class Member:
    """A replica, and how it fares."""

    replica: Replica
    num_in_flight: int = 0
    is_compared: bool = False
    """Whether it was found to host the same teacher as the others, and has answered since."""
    comparing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is compared, so that many calls at once cost one comparison."""
    failure: TeacherUnavailableError | None = None
    """Why it last gave no answer."""
    away_since: float | None = None
    """When it last gave no answer; None once it gave one again."""

    def is_away(self) -> bool:
        """Whether the others are to be asked first."""
        if self.away_since is None:
            return False
        is_resting = time.monotonic() - self.away_since < REST_SECONDS
        return not self.replica.is_connected() or is_resting


def order_of(members: Mapping[str, Member], *, prefix: bytes) -> list[Member]:
    """Members by address, as a prompt with this prefix prefers them; those with too much to do after the rest, those
    that are away last."""
    preferred = [members[address] for address in rendezvous_order(prefix, members)]
    is_away = {member: member.is_away() for member in preferred}
    num_in_flight = 1 + sum(member.num_in_flight for member in preferred)
    fair_share = num_in_flight / max(1, len(preferred) - sum(is_away.values()))
    most = max(MIN_BUSY_CALLS, LOAD_FACTOR * fair_share)
    return sorted(preferred, key=lambda member: (is_away[member], member.num_in_flight >= most))
