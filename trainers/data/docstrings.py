"""Docstrings of the installed scientific packages: real text and labels without a download.

They are read, divided and encoded once (20 seconds) and kept in the folder of data sets, docstrings/HASH.npz; the
hash is that of the versions. A folder that cannot be written keeps nothing.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.files import atomic
from landscape.registry import register
from landscape.results import digest
from trainers.data import Arrays, Source
from trainers.data.forms import require_count
from trainers.text.packages import MASK, PINNED, docstrings, installed_versions
from trainers.text.parts import divided
from trainers.text.tokens import filled, next_tokens, rows, tokenizer

VOCABULARY = 2048
LONGEST = 257
"""Tokens that are kept of a text."""
RECIPE = 1
"""Raised when other texts, parts or tokens are made of the same packages: what was kept before is another file."""
PACKAGES, INSTALLED = "pinned", "installed"


@register("docstrings", small={"train": 400, "test": 100})
def of_packages(
    source: Source,
    *,
    length: int = 64,
    train: int | None = None,
    test: int | None = None,
    versions: str = "pinned",
    sha256: str | None = None,
) -> Arrays:
    """14,000 + 2,700 docstrings of five installed packages (matplotlib, numpy, scikit-learn, scipy, torch): which one?

    Every word that names a package is masked. Texts are the first 200 words of docstrings, read from the source files,
    none imported; a hash of the words divides them, and no test text is a near-duplicate of a training text (more than
    half of its runs of five words would occur there; cut to 64 tokens one of them begins as a training text does, to 16
    tokens 66 do). 2,048 byte-level byte pairs, trained on the training texts.

    The versions of the packages decide what the texts are: those pinned in constraints.txt, or others, which make
    another data set. A checkpoint records versions and hash, and is analyzed with these alone.
    Source: the packages' authors; licenses as theirs (BSD, matplotlib's).

    Args:
        length: tokens of a text, the first of which begins it; shorter ones are filled up with 0.
        train: training texts, the first in the order of their hash; default all.
        test: test texts, likewise; default all.
        versions: of the packages: pinned, installed, or PACKAGE==VERSION for each, with spaces between.
        sha256: of all texts as tokens, as a checkpoint records it; others are refused.
    """
    corpus, settled = _corpus(source, length, versions, sha256)
    parts = [corpus.part(part, size) for part, size in (("train", train), ("test", test))]
    (x_train, y_train), (x_test, y_test) = ((filled(lines, length), labels) for lines, labels in parts)
    return Arrays(x_train, y_train, x_test, y_test, len(PINNED), vocabulary=VOCABULARY, settled=settled)


@register("docstrings-lm", small={"train": 400, "test": 100, "length": 32})
def next_token_of_packages(
    source: Source,
    *,
    length: int = 64,
    train: int | None = None,
    test: int | None = None,
    versions: str = "pinned",
    sha256: str | None = None,
) -> Arrays:
    """The texts of `docstrings` for a causal language model: the target of each token is the next one.

    An example is a text. Its loss is the mean over its tokens, without those behind its end (targets of -100), and that
    of a batch the mean over examples. L of an analysis is the mean over all tokens, as other tools have it.

    Args:
        length: tokens of an example; shorter texts are filled up.
        train: training texts, the first in the order of their hash; default all.
        test: test texts, likewise; default all.
        versions: of the packages: pinned, installed, or PACKAGE==VERSION for each, with spaces between.
        sha256: of all texts as tokens, as a checkpoint records it; others are refused.
    """
    corpus, settled = _corpus(source, length, versions, sha256)
    parts = [corpus.part(part, size)[0] for part, size in (("train", train), ("test", test))]
    (x_train, y_train), (x_test, y_test) = (next_tokens(lines, length) for lines in parts)
    return Arrays(x_train, y_train, x_test, y_test, VOCABULARY, vocabulary=VOCABULARY, settled=settled)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as tokens, those for training first.

    Attributes:
        tokens: uint16, of all texts one after another.
        ends: int64, where each text ends.
        labels: int64, of each text.
        train: int64, 0-dim: how many are for training.
    """

    tokens: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    train: np.ndarray

    @property
    def sha256(self) -> str:
        """Over all of it."""
        return digest.of_parts(np.ascontiguousarray(getattr(self, name)).tobytes() for name in _NAMES)

    def part(self, part: str, size: int | None) -> tuple[list[list[int]], Tensor]:
        """The first texts of a part, and their labels.

        Raises:
            InputError: there are not so many.
        """
        require_count(part, size)
        first, last = (0, int(self.train)) if part == "train" else (int(self.train), len(self.labels))
        if size is not None and size > last - first:
            raise InputError(f"{part}={size}: there are {last - first} {part} texts")
        last = last if size is None else first + size
        starts = [0, *self.ends.tolist()]
        lines = [self.tokens[starts[i] : starts[i + 1]].tolist() for i in range(first, last)]
        return lines, torch.from_numpy(self.labels[first:last].copy())


_NAMES = ("tokens", "ends", "labels", "train")
_TYPES = (np.uint16, np.int64, np.int64, np.int64)


def _corpus(source: Source, length: int, versions: str, sha256: str | None) -> tuple[Corpus, dict[str, str]]:
    """The texts, and what a checkpoint has to record of them."""
    if not 2 <= length < LONGEST:
        raise InputError(f"length={length}: from 2 to {LONGEST - 1} tokens of a text are kept")
    settled = _settled(versions)
    corpus = _kept(source.directory / "docstrings", settled)
    if sha256 not in (None, corpus.sha256):
        raise InputError(
            f"{source.name} of {settled} has other texts or tokens than those of SHA-256 {sha256}: files of a package "
            "were changed, or another release of tokenizers divides words otherwise; reinstall them, or leave "
            f"sha256 out (here it is {corpus.sha256})"
        )
    return corpus, {"versions": settled, "sha256": corpus.sha256}


def _settled(versions: str) -> str:
    """The installed versions as PACKAGE==VERSION.

    Raises:
        InputError: they are not those that are asked for.
    """
    installed = installed_versions()
    wanted = installed if versions == INSTALLED else PINNED
    if versions not in (INSTALLED, PACKAGES):
        wanted = {package: version for package, _, version in (v.partition("==") for v in versions.split())}
        if wanted.keys() != PINNED.keys():
            raise InputError(
                f"versions={versions!r}: pinned, installed, or PACKAGE==VERSION of {', '.join(PINNED)} are needed"
            )
    for package, version in installed.items():
        if version != wanted[package]:
            raise InputError(
                f"docstrings: {package} {version} is installed, these texts need {wanted[package]}: pip install "
                f"{package}=={wanted[package]}, or take another data set, --data-arg versions=installed"
            )
    return " ".join(f"{package}=={version}" for package, version in installed.items())


@functools.lru_cache(maxsize=2)
def _kept(folder: Path, versions: str) -> Corpus:
    path = folder / f"{digest.of_configuration([RECIPE, versions])[:16]}.npz"
    unreadable = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
    with contextlib.suppress(*unreadable), np.load(path, allow_pickle=False) as held:
        corpus = Corpus(*(held[name] for name in _NAMES))
        if corpus.sha256 == str(held["sha256"]):
            return corpus
    corpus = _made()
    with contextlib.suppress(InputError), atomic(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, sha256=np.array(corpus.sha256), **{name: getattr(corpus, name) for name in _NAMES})
    return corpus


def _made() -> Corpus:
    train, test = divided(docstrings())
    made = tokenizer((t.text for t in train), VOCABULARY, "docstrings", whole=[MASK])
    lines = rows(made, [(t.text,) for t in (*train, *test)], LONGEST)
    values = (
        [token for line in lines for token in line],
        np.cumsum([len(line) for line in lines]),
        [t.label for t in (*train, *test)],
        len(train),
    )
    return Corpus(*(np.array(value, dtype=kind) for value, kind in zip(values, _TYPES, strict=True)))
