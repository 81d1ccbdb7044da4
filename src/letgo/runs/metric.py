"""A measured value: never without the number of samples behind it and an interval."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, field_validator

from letgo.core.errors import EmptyScoreError, NonFiniteLossError


class Metric(BaseModel):
    """A value over `n` samples with its 95 % interval. Zero samples or a value that is not finite raise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    n: int
    ci95: tuple[float, float]

    @field_validator("n")
    @classmethod
    def _some_samples(cls, n: int) -> int:
        if n < 1:
            raise EmptyScoreError("a metric over zero samples is not a score")
        return n

    @field_validator("value")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise NonFiniteLossError(f"a metric came out as {value}")
        return value


Metrics = dict[str, Metric]
