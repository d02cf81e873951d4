"""Numbers of the command line: what an option takes, refused in one line before any work."""

from __future__ import annotations

import math
from typing import Any

import click

from landscape.errors import InputError
from landscape.shards import Shard


class Real(click.types.FloatParamType):
    """A finite number in an interval; ends belong to it unless `above` excludes the lower one.

    Args:
        least: lower end.
        most: upper end.
        above: the number must be above `least`.
        infinite: inf is a number, too (an order of a norm).
    """

    def __init__(
        self, least: float = -math.inf, most: float = math.inf, *, above: bool = False, infinite: bool = False
    ) -> None:
        self.least, self.most, self.above, self.infinite = least, most, above, infinite

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; anything else is refused."""
        number = super().convert(value, param, ctx)
        low = number > self.least if self.above else number >= self.least
        if not (low and number <= self.most and (math.isfinite(number) or self.infinite)):
            raise InputError(f"{_name(param)} must be {self}, received {number}")
        return number

    def __str__(self) -> str:
        if (self.least, self.above, self.most) == (0, True, math.inf):
            return "positive" if self.infinite else "positive and finite"
        ends = [f"{'above' if self.above else 'at least'} {self.least:g}"] if self.least > -math.inf else []
        ends += [f"at most {self.most:g}"] if self.most < math.inf else []
        return " and ".join([*ends, *([] if self.infinite or self.most < math.inf else ["finite"])])


class Whole(click.types.IntParamType):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int = 1, most: int = 10**9) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; anything else is refused."""
        number = super().convert(value, param, ctx)
        if number < self.least:
            raise InputError(f"{_name(param)} must be at least {self.least}, received {number}")
        if number > self.most:
            raise InputError(f"{_name(param)} must be at most {self.most:,}, received {number}")
        return number


POSITIVE = Real(0, above=True)
SEED = Whole(-(2**63), 2**63 - 1)
"""What torch's generators take, with room for the ranks of the processes."""


class ShardType(click.ParamType):
    """I/N: which of how many processes that share the work."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """The shard; anything else is refused."""
        return value if isinstance(value, Shard) else Shard.parsed(value)


def _name(param: click.Parameter | None) -> str:
    return param.opts[-1] if param else "the number"
