"""Words for what was measured: a label that says what it is, what it means, the unit of its value.

They stand in the measure's file, in its `@measure(...)`, and are read from there without importing it. A text may name
an option of the measure, `{rise}`, and these, which follow the options: `{matrix}` ("Hessian", "Gauss-Newton", ...),
`{which}` ("Largest", "Smallest", ...) and `{index}` ("λ₁" for the largest).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from landscape.formatting import number
from landscape.registry import Entry

MATRICES = {
    "hessian": ("Hessian", ""),
    "ggn": ("Gauss-Newton", "the second derivatives of the network's outputs are left out"),
    "fisher": ("Fisher", "the mean square of the gradients at labels as the model expects them"),
    "mc-fisher": ("sampled Fisher", "the mean square of the gradients at labels that are drawn from the model"),
    "empirical-fisher": ("empirical Fisher", "the mean square of the examples' gradients"),
}
"""Matrix -> its name, and what sets it apart from the Hessian."""

_WHICH = {"LA": "Largest", "SA": "Smallest", "LM": "Largest", "BE": "Outermost"}


@dataclass(frozen=True)
class Meaning:
    """What stands beside a number.

    Attributes:
        label: names the row.
        general: explains it.
        plural: title where several values are drawn; "" where that is the label.
        unit: of the value.
        flat: "small" where the flatter of two minima has the smaller value, "large" where the larger; "" for neither.
        fields: for a measure without a single value: name in the summary -> (label of the row, name of its error bound
            or "", what it says).
    """

    label: str
    general: str
    plural: str = ""
    unit: str = ""
    flat: str = ""
    fields: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)

    @property
    def several(self) -> str:
        """Title of a plot of all its values."""
        return self.plural or self.label


def meaning(entry: Entry, values: Mapping[str, Any] | None = None) -> Meaning:
    """The words of a measure for what was computed; one without words is described by its docstring.

    Args:
        entry: of the registry.
        values: options and fields of the result by name (its summary); by default the options' defaults.
    """
    words = labels({o.name: o.default for o in entry.options} | dict(values or {}))
    facts = entry.facts
    title = entry.name.replace("_", " ").strip()
    label = facts.get("label", title[:1].upper() + title[1:])
    general = facts.get("meaning", f"{entry.summary}." if entry.summary else "")
    fields = facts.get("fields", {})
    name, difference = MATRICES.get((values or {}).get("matrix", "hessian"), ("", ""))
    if difference:
        general = f"Of the {name} matrix, not of the Hessian: {difference}."
        fields = {k: (f"{label}, {name}", bound, general) for k, (label, bound, _) in fields.items()}
    plural, unit = facts.get("plural", ""), facts.get("unit", "")
    flat = facts.get("flat", "") if (values or {}).get("which", "LA") in ("LA", "LM") else ""
    return Meaning(filled(label, words), filled(general, words), filled(plural, words), unit, flat, fields)


def labels(values: Mapping[str, Any]) -> dict[str, str]:
    """Names in a text -> the words that take their place, from options and results by name."""
    which = values.get("which", "LA")
    matrix = values.get("matrix", "hessian")
    words = {k: v if isinstance(v, str) else number(v) for k, v in values.items() if isinstance(v, str | int | float)}
    words |= {"matrix": MATRICES.get(matrix, (str(matrix), ""))[0], "which": _WHICH.get(which, str(which))}
    return words | {"index": "λ₁" if which == "LA" else ""}


def filled(text: str, words: Mapping[str, str]) -> str:
    """The text with the words in their places."""
    return text.format_map(words).strip()
