"""`--persistence`: minima, saddles and what noise would give, of a surface or a path that a command has computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOISE_DRAWS = 99
"""Of the noise that is put beside minima: 95 of them give the 95% quantile."""


def minima_of(results: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Name -> its persistence, saved in persistence.h5 and drawn."""
    import landscape
    from figures.drawing import persistence as drawing

    minima = {name: landscape.persistence(result) for name, result in results.items()}
    landscape.save(directory / "persistence.h5", minima)
    for name, one in minima.items():
        drawing.write(one, directory / "figures" / (f"{name}-persistence" if len(minima) > 1 else "persistence"))
    return minima
