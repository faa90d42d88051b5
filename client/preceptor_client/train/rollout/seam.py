"""Where the settings name a rollout engine: rollout.engine. Imports an engine only once it is named."""

from __future__ import annotations

from preceptor_client.train.parts import Seam
from preceptor_client.train.rollout.engine import RolloutEngine

ENGINE: Seam[RolloutEngine] = Seam(
    what="a rollout engine",
    protocol=RolloutEngine,
    builtins={
        "jsonl": "preceptor_client.train.rollout.from_file:EpisodesFromFile",
        "openai": "preceptor_client.train.rollout.openai:TeacherWrites",
        "mixed": "preceptor_client.train.rollout.mixed:Mixed",
    },
)
