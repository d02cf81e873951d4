"""Parts of a fixed set of examples: groups of m for m-sharpness, disjoint subsets for confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral

import torch

from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem
from landscape.random import stream


def positive(name: str, value: int) -> int:
    """`value` where it is an integer of at least 1, else InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value}: a whole number of at least 1 is needed")
    return int(value)


def check_division(problem: Problem, m: int | None, subsets: int) -> None:
    """Raise InputError where the examples cannot be divided into groups of `m` or into `subsets`, before any work."""
    if m is not None:
        positive("m", m)
    if subsets != 0 and positive("subsets", subsets) < 2:
        raise InputError("subsets=1: a spread needs at least 2 subsets; 0 computes no interval")
    if m is None and not subsets:
        return
    n = problem.examples
    if n != problem.batches.examples:
        raise InputError("m and subsets need all examples in one process, these are spread over several: run in one")
    if subsets > n:
        raise InputError(f"subsets={subsets}: there are only {n} examples; give at most {n} subsets")
    smallest = n // (subsets or 1)
    if m is not None and m > smallest:
        where = f" in each of {subsets} subsets" if subsets else ""
        raise InputError(f"m={m}: there are only {smallest} examples{where}; give m <= {smallest}")
    if problem.undividable is not None or problem.batches.whole() is None:
        reason = problem.undividable or "the batches differ in shape"
        raise InputError(f"m and subsets regroup the examples, and {reason}: give neither")


def both(
    problem: Problem, wide: Problem, divide: Callable[[Problem], Iterator[Problem]]
) -> Iterator[tuple[Problem, Problem]]:
    """The parts of a problem beside those of the same one in float32, which may be itself (see `widened`)."""
    if wide is problem:
        return ((part, part) for part in divide(problem))
    return zip(divide(problem), divide(wide), strict=True)


def in_groups(problem: Problem, m: int | None) -> Iterator[Problem]:
    """The problem divided into consecutive groups of m examples (the last may be smaller); itself for m None."""
    if m is None:
        yield problem
        return
    largest = max(problem.batches.sizes)
    for batch in problem.batches.split(m):
        pieces = problem.batches.of(_pieces(batch, largest)).kept or []
        if any(p.weight for p in pieces):  # a group of which no target counts has no loss
            yield problem.with_batches(pieces)


def disjoint_subsets(problem: Problem, count: int, seed: int) -> Iterator[Problem]:
    """The problem on each of `count` disjoint random subsets of its examples, of equal size (to one).

    Raises:
        InputError: a subset without a label that counts.
    """
    whole = problem.batches.whole()
    assert whole is not None, "check_division comes first"
    largest = max(problem.batches.sizes)
    for index in torch.randperm(whole.size, generator=stream(seed, "subsets")).tensor_split(count):
        rows = index.to(problem.weights.device)
        pieces = _pieces(whole.select(rows), largest)
        yield part_that_counts(problem, pieces, f"one of {count} random subsets", f"fewer subsets than {count}")


class RandomBatches:
    """Random examples of a problem, without replacement; a draw depends on its name and the seed alone.

    Args:
        problem: L.
        size: examples of a draw; None, or as many as there are: always the problem itself.
        seed: of the draws.

    Raises:
        InputError: a size that is not a positive number, batches that cannot be regrouped.
    """

    def __init__(self, problem: Problem, size: int | None, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.size = None if size is None or positive("batch_size", size) >= problem.examples else int(size)
        self._whole = None
        if self.size is None:
            return
        reason = problem.undividable
        if problem.examples != problem.batches.examples:
            reason = "they are spread over several processes"
        self._whole = None if reason else problem.batches.whole()
        if self._whole is None:
            raise InputError(
                f"batch_size={size} regroups the examples, and {reason or 'the batches differ in shape'}: give "
                "None (batch_size=none on the command line), which takes all of them"
            )

    def draw(self, name: str) -> Problem:
        """The problem on the examples of this name; passes are counted together.

        Raises:
            InputError: none of them has a label that counts.
        """
        if self._whole is None:
            return self.problem
        rows = torch.randperm(self._whole.size, generator=stream(self.seed, name))[: self.size]
        batch = self._whole.select(rows.to(self.problem.weights.device))
        more = f"a batch_size above {self.size}, or None for all (batch_size=none on the command line)"
        return part_that_counts(self.problem, [batch], f"a draw of {self.size} of {self._whole.size} examples", more)


def part_that_counts(problem: Problem, batches: Sequence[Batch], what: str, advice: str) -> Problem:
    """The problem on some of its examples; InputError, with the advice, where none of them has a label that counts."""
    weighed = [problem.weighed(b) for b in batches]
    if not any(b.weight for b in weighed):
        raise InputError(f"{what} holds no label that counts (all are ignored or weigh 0): give {advice}")
    return problem.with_batches(weighed)


def _pieces(batch: Batch, size: int) -> list[Batch]:
    return [batch.rows(i, min(i + size, batch.size)) for i in range(0, batch.size, size)]
