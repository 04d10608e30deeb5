"""The types of options that a user may set, with their bounds: what `config.check` reads from signatures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]  # a larger one overflows somewhere in torch
NonNegativeInt = Annotated[int, Field(ge=0)]
SeveralRows = Annotated[int, Field(ge=10)]  # enough for each part of a split to have some
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]

Columns = list[Annotated[NonNegativeInt | str, Field(union_mode="left_to_right")]]  # by index or by name

Scope = Literal["sequence", "batch", "global"]  # over which tokens a term balances; global: all micro-batches of a step
