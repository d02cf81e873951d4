"""Feature spaces: which axes of which parameters one map of features passes through unseen.

The features between two layers are coordinates that a network's parameters agree on: what writes them holds them
along one axis, what reads them along another. Where only sums, linear layers and norms see them, an orthogonal matrix
may turn them; behind a function of single entries (GELU, tanh, a gate) they can trade places; a head split, an output
or anything that is not known leaves them as they are.

Norms decide about the residual stream. With n(x) = x / rms(x), n(Q x) = Q n(x) for every orthogonal Q; LayerNorm
subtracts the mean before, so that Q must keep the vector of ones up to its sign. The gain g does not turn along: it
stands between n and the layers that read g n + b. Where those are linear layers alone, g passes into them, W diag(g),
and any other gain without zeros may stand in its place: W -> W diag(g) Q' diag(1/g'), b -> g' Q (b / g) leaves the
function. Where a reader is also a writer (a head tied to the embedding) or the norm's output is added to something,
the features trade places only, and signs: all at once with LayerNorm, one by one with RMSNorm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Axis = tuple[str, int]
"""A parameter and one of its axes."""


@dataclass(frozen=True)
class Norm:
    """A norm of a space that only linear layers read.

    Attributes:
        centered: whether the mean is subtracted before (LayerNorm).
        gain: name of the parameter, None without one.
        bias: likewise.
        readers: (weight, axis of its inputs).
    """

    centered: bool
    gain: str | None
    bias: str | None
    readers: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class FeatureSpace:
    """Features that parameters agree on.

    Attributes:
        size: number of features.
        members: (parameter, axis) along which they lie.
        gains: gains of norms that trade places with them and take no sign; for permutations.
        norms: through which others read them; for orthogonal maps.
        orthogonal: whether orthogonal matrices pass; else permutations.
        centered: whether these must keep the vector of ones, up to its sign.
        signs: of permutations: "none", "common" (one for all) or "each".
    """

    size: int
    members: tuple[Axis, ...]
    gains: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ()
    orthogonal: bool = False
    centered: bool = False
    signs: str = "none"

    @property
    def name(self) -> str:
        """The parameter that comes first."""
        return self.members[0][0]

    def tensors(self) -> set[str]:
        """Every parameter that a map of the space changes."""
        norms = {n for norm in self.norms for n in (norm.gain, norm.bias, *(r[0] for r in norm.readers)) if n}
        return {name for name, _ in self.members} | set(self.gains) | norms

    def permutation(self) -> FeatureSpace:
        """The same space where no more than places are traded."""
        readers = tuple(r for norm in self.norms for r in norm.readers)
        biases = tuple((norm.bias, 0) for norm in self.norms if norm.bias)
        gains = tuple(norm.gain for norm in self.norms if norm.gain)
        signs = self.signs if not self.orthogonal else "common" if self.centered else "each"
        return FeatureSpace(self.size, (*self.members, *readers, *biases), (*self.gains, *gains), signs=signs)


@dataclass
class SpaceClass:
    """What is known of one class of tied features."""

    size: int
    members: list[Axis] = field(default_factory=list)
    rigid: bool = False
    bent: bool = False
    summed: bool = False


@dataclass
class NormCall:
    """One call of a norm: which class it reads, which it writes, its parameters."""

    centered: bool
    read: int
    written: int
    gain: str | None
    bias: str | None


class Spaces:
    """Classes of features under ties; a norm makes a class of its own of what it writes."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._classes: dict[int, SpaceClass] = {}
        self.norms: list[NormCall] = []

    def fresh(self, size: int, member: Axis | None = None) -> int:
        """A new class of `size` features."""
        number = len(self._parent)
        self._parent.append(number)
        self._classes[number] = SpaceClass(size, [member] if member else [])
        return number

    def root(self, space: int) -> int:
        """The number that names a class."""
        while self._parent[space] != space:
            self._parent[space] = space = self._parent[self._parent[space]]
        return space

    def of(self, space: int) -> SpaceClass:
        """What is known of the class."""
        return self._classes[self.root(space)]

    def tie(self, a: int | None, b: int | None, *, summed: bool = False) -> int | None:
        """One class of two; a side that is None has features that cannot be mapped."""
        if a is None or b is None:
            self.fix([a, b])
            return None
        a, b = sorted((self.root(a), self.root(b)))  # the older one, which the network meets first, gives the name
        one, other = self._classes[a], self._classes[b]
        if a != b:
            self._parent[b] = a
            one.members += [m for m in other.members if m not in one.members]
            one.rigid, one.bent, one.summed = (x or y for x, y in zip(_flags(one), _flags(other), strict=True))
            del self._classes[b]
        one.rigid |= one.size != other.size
        one.summed |= summed
        return a

    def fix(self, spaces: Iterable[int | None]) -> None:
        """No map passes through these."""
        for space in spaces:
            if space is not None:
                self.of(space).rigid = True

    def bend(self, spaces: Iterable[int | None]) -> None:
        """Only permutations pass through these."""
        for space in spaces:
            if space is not None:
                self.of(space).bent = True

    def collected(self) -> list[FeatureSpace]:
        """Every class through which something passes."""
        folded = [call for call in self.norms if self._foldable(call)]
        loose = [call for call in self.norms if call not in folded]
        for call in loose:
            self.tie(call.read, call.written, summed=True)
        # A tie may have joined what a folded norm reads with what it writes.
        folded = [call for call in folded if self.root(call.read) != self.root(call.written)]
        consumed = {self.root(call.written) for call in folded}
        spaces = [self._space(root, folded, loose) for root in self._classes if root not in consumed]
        return [space for space in spaces if space is not None and space.members and space.size > 1]

    def _foldable(self, call: NormCall) -> bool:
        """Whether linear layers alone read what the norm writes, each of them nothing else."""
        written, root = self.of(call.written), self.root(call.written)
        alone = sum(self.root(other.written) == root for other in self.norms) == 1
        # A gain that another call reads too cannot pass into the readers of this one.
        alone &= not any(
            other is not call and {call.gain, call.bias} & {other.gain, other.bias} - {None} for other in self.norms
        )
        plain = not (written.rigid or written.bent or written.summed)
        return alone and plain and all(self.root(other.read) != root for other in self.norms) and bool(written.members)

    def _space(self, root: int, folded: list[NormCall], loose: list[NormCall]) -> FeatureSpace | None:
        here = self._classes[root]
        norms = [call for call in folded if self.root(call.read) == root]
        tied = [call for call in loose if self.root(call.read) == root]
        readers = [self.of(call.written) for call in norms]
        if here.rigid:
            return None
        through = tuple(
            Norm(call.centered, call.gain, call.bias, tuple(reader.members))
            for call, reader in zip(norms, readers, strict=True)
        )
        biases = tuple((call.bias, 0) for call in tied if call.bias)
        gains = tuple(dict.fromkeys(call.gain for call in tied if call.gain))  # once, also of a norm called twice
        centered = any(call.centered for call in (*norms, *tied))
        members = tuple(dict.fromkeys((*here.members, *biases)))
        if not (here.bent or tied):
            return FeatureSpace(here.size, members, norms=through, orthogonal=True, centered=centered)
        signs = "none" if here.bent else "common" if centered else "each"
        return FeatureSpace(here.size, members, gains, through, signs=signs).permutation()


def _flags(one: SpaceClass) -> tuple[bool, bool, bool]:
    return one.rigid, one.bent, one.summed
