"""What came of a draw."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
_REMEDIES = (
    *("give", "needed", "needs", "use", "set ", "call", "take", "pass", "choose", "restrict", "check", "reshape"),
    *("instead", "replace", "put ", "let ", "make", "larger", "smaller", "must be", "wrap", "load", "run ", "look at"),
)


@dataclass
class Verdict:
    """Of one draw.

    Attributes:
        seed: of the draw.
        kind: the row of the table.
        outcome: "right", "refused" (one line that says what to do, where that may be) or "wrong".
        texts: what was wrong, or the refusal.
        choice: what was drawn, as plain data.
    """

    seed: int
    kind: str
    outcome: str = RIGHT
    texts: list[str] = field(default_factory=list)
    choice: dict[str, object] = field(default_factory=dict)

    def wrong(self, text: str) -> None:
        """Add what is wrong."""
        if self.outcome != WRONG:
            self.outcome, self.texts = WRONG, []
        self.texts.append(text)

    def refused(self, text: str) -> None:
        """Keep what the refusal said."""
        if self.outcome == RIGHT:
            self.outcome = REFUSED
            self.texts.append(text)

    def same(self, what: str, seen: object, right: object, slack: float, scale: float = 1.0) -> None:
        """Wrong where two arrays differ by more than slack (scale + the largest that is right), or not at all alike."""
        a, b = (v.detach().double() if isinstance(v, Tensor) else torch.tensor(np.array(v)) for v in (seen, right))
        if a.shape != b.shape:
            self.wrong(f"{what} has shape {tuple(a.shape)}, right is {tuple(b.shape)}")
        elif a.numel() and not float((a - b).abs().max()) <= slack * (scale + float(b.abs().max())):
            one = f"{float(a):.9g}, right is {float(b):.9g}" if a.dim() == 0 else f"off by {(a - b).abs().max():.3g}"
            self.wrong(f"{what} is {one}")

    def within(self, what: str, low: float, seen: float, high: float) -> None:
        """Wrong where a number lies outside its bounds."""
        if not low <= seen <= high:
            self.wrong(f"{what} is {seen:.9g}, outside [{low:.9g}, {high:.9g}]")

    @contextlib.contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Within it a refusal is refused, if one line says what to do; any other exception is wrong."""
        try:
            yield
        except InputError as error:
            fault = line_fault(str(error))
            if fault is None:
                self.refused(f"{name}: {error}")
            else:
                self.wrong(f"{name}: {fault}: {error}")
        except Exception as error:
            self.wrong(f"{name} raised {type(error).__name__}: {str(error)[:300]}")

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def line_fault(text: str) -> str | None:
    """What is wrong with the text of a refusal; None where it is one line that says what to do."""
    if "\n" in text or not text.strip():
        return "the refusal is not one line"
    if len(text) > 500:
        return f"the refusal has {len(text)} characters"
    if "the loss failed on batch" in text:  # what a user's function raised is for its author to read
        return None
    if not any(word in text for word in _REMEDIES):
        return "the refusal names no remedy"
    return None
