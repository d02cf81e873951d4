"""Results: records with named axes, in HDF5 and other formats."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`load` and `save`, when they are asked for: the digests of this room are needed where torch is not."""
    if name in ("load", "save"):
        from landscape.results import hdf5

        return getattr(hdf5, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
