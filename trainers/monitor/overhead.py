"""What watching costs: seconds of measuring beside seconds of training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import perf_counter


class Overhead:
    """Seconds of a run spent on training and on measuring, and whether one more measurement fits the budget.

    One fits if measuring has had at most `share` of all seconds after it, provided that it takes as long as the last:

        measuring + last <= share (training + measuring + last)

    The first of a process is always made. All that is not measuring (validation, checkpoints) counts as training.

    Args:
        share: of all seconds, in (0, 1); None for no budget.

    Attributes:
        training, measuring: seconds so far.
        last: seconds of the last measurement, with the writing of its row.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.training = self.measuring = self.last = 0.0
        self._mark: float | None = None

    @property
    def part(self) -> float:
        """Measuring's part of all seconds so far; 0 before the first."""
        return self.measuring / (self.training + self.measuring) if self.measuring else 0.0

    def resume(self, training: float, measuring: float) -> None:
        """Go on with the seconds of an earlier process."""
        self.training, self.measuring = training, measuring

    def fits(self) -> bool:
        """Whether one more measurement fits the budget."""
        if self.share is None or not self.last:
            return True
        after = self.measuring + self.last
        return after <= self.share * (self.training + after)

    def trained(self) -> None:
        """Everything since the last call, or since the last measurement, was training."""
        now = perf_counter()
        self.training += now - (now if self._mark is None else self._mark)
        self._mark = now

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """What happens within is measuring."""
        self.trained()
        try:
            yield
        finally:
            self.last = self.lap()
            self.measuring += self.last
            self._mark = perf_counter()

    def lap(self) -> float:
        """Seconds since the present measurement began."""
        return perf_counter() - (self._mark or 0.0)
