"""One file per published figure or table, and the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from landscape.registry import Registry

if TYPE_CHECKING:
    from figures.study.figure import Figure

FIGURES: Registry[type[Figure]] = Registry("figures.paper", "figure")
