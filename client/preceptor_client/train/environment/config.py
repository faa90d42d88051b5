"""Settings of an environment. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from preceptor_client.train.parts import PartConfig


class EnvironmentConfig(PartConfig):
    """An environment that answers the student; one is made for each episode."""

    num_examples: int = Field(0, ge=0)
    """Without data.train: how many examples there are to practise on. Each has only its number, from 0, which the
    environment's reset gets."""
    num_heldout: int = Field(0, ge=0)
    """Without data.heldout: how many of them are measured on instead, numbered after those to practise on."""
