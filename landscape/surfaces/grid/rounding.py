"""What rounding leaves of the differences in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_WHOLE = 3
"""Range of the errors of a whole grid over that of the points that are looked at."""


def rounding_of_differences(rows: Sequence[dict[str, Any]]) -> float | None:
    """What differences of losses owe to rounding, by the errors at a few points; None where nothing is known of them.

    An error that all points share moves no picture.
    """
    errors = np.array([row["loss"] - row["native"] for row in rows])
    errors = errors[np.isfinite(errors)]
    return float(_WHOLE * np.ptp(errors)) if errors.size > 1 else None
