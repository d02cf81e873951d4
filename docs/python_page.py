"""docs/reference/python.md: which public name is documented where; `make site` fills in signatures and docstrings."""

from __future__ import annotations

import landscape
import trainers

ROOMS = {
    "The function L(w)": ("Problem", "problem_from", "Parameters", "Scaling"),
    "Surfaces and paths": (
        "surface",
        "compare_surfaces",
        "profiles",
        "path",
        "align",
        "Surface",
        "Profiles",
        "LossPath",
    ),
    "Rescalings": ("rescaling.find", "rescaling_invariance", "Invariance"),
    "While training": ("Monitor",),
    "Results": ("load", "save", "Result", "LabelledArrays", "Sharpness"),
    "Errors and warnings": (
        "InputError",
        "InputWarning",
        "CheckpointWarning",
        "AsymmetryWarning",
        "NonDeterministicWarning",
    ),
}
HEAD = """# Python

Made by `make docs`. Signatures and docstrings are filled in by `make site`; in Python, `help(landscape.Problem)` shows
the same. `import landscape` is quick: a name is imported, and torch with it, when it is first used.
"""


def page() -> str:
    """The page: measures as a table, every other public name with the directive that mkdocstrings replaces."""
    homes = landscape.homes()
    measures = {entry.symbol: entry for entry in landscape.MEASURES.entries.values()}
    named = {name.split(".")[0] for names in ROOMS.values() for name in names}
    other = [name for name in homes if name not in named and name not in measures]
    parts = [HEAD]
    for title, names in {**ROOMS, "More": other}.items():
        parts += [f"## {title}\n", *(f"::: landscape.{name}\n" for name in names)]
    parts += [
        "## Measures\n",
        "Called as `landscape.NAME(problem, ...)`.\n",
        "| function | what it is |",
        "| --- | --- |",
    ]
    rows = [
        f"| [`{symbol}`](measures.md#{entry.name}) | {_cell(entry.summary)} |" for symbol, entry in measures.items()
    ]
    parts += [*rows, "", "## Training\n", *(f"::: trainers.{name}\n" for name in trainers.__all__ if name != "METHODS")]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
