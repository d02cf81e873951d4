"""Small packages of docstrings, and random rows of tokens."""

from types import SimpleNamespace

import torch

from trainers.datasets import Data
from trainers.text import packages

NUMBERS = ("one", "two", "three", "four", "five")
SOURCE = '''"""Module {name}: uses numpy arrays and {name} alike."""
if True:
    def inner():
        """Returns the sum of two arrays of numbers, number {number}."""
        class Local:
            """A local class with enough words in it, {name}-{number}."""
def short():
    """Too short."""
def shared():
    """The same words in every one of the packages, twice."""
async def waits():
    """Waits for the {number} slow things of numpy.linalg, then goes on."""
raise RuntimeError("a module of a package was imported")
'''


def write_packages(root, monkeypatch, versions=None):
    """One package for each of those that the data set reads, in `root`, which alone is looked at."""
    for number, package in enumerate(packages.PINNED):
        name = packages.MODULES.get(package, package)
        folder = root / name
        for part in ("tests", "_private", "sub"):
            (folder / part).mkdir(parents=True)
        (folder / "__init__.py").write_text(SOURCE.format(name=name, number=NUMBERS[number]))
        (folder / "tests" / "test_it.py").write_text('"""A test whose text must not be read at all."""')
        (folder / "_private" / "of.py").write_text(
            f'"""The private part of it holds some more words: {name} {number}."""'
        )
        (folder / "sub" / "broken.py").write_text(
            '"""A template that is no Python at all, as some are."""\nclass {{ x }}'
        )
    monkeypatch.setattr(packages, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[root / name]))
    installed = {**packages.PINNED, **(versions or {})}
    monkeypatch.setattr(packages, "version", installed.__getitem__)


def random_text(predicts="class", n=48, length=6, vocabulary=11, classes=3):
    """Rows of random tokens of random lengths, as a data set whose class is a function of the second token."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, vocabulary, (n + 12, length), generator=generator)
    ends = torch.randint(3, length + 1, (n + 12, 1), generator=generator)
    x[:, 0] = 1
    y = x[:, 1] % classes
    if predicts == "next tokens":
        last = torch.randint(2, vocabulary, (n + 12, 1), generator=generator)
        y, classes = torch.cat([x[:, 1:], last], 1).masked_fill(torch.arange(length) >= ends, -100), vocabulary
    x = x.masked_fill(torch.arange(length) >= ends, 0)
    zero, one = torch.zeros(()), torch.ones(())
    facts = {"name": "random-text", "arguments": {}, "classes": classes, "augment": False, "sha256": "0" * 64}
    facts |= {"mean": zero, "std": one, "standardized": True, "vocabulary": vocabulary}
    return Data(stored_train=x[:n], y_train=y[:n], stored_test=x[n:], y_test=y[n:], **facts)


MODEL = {"class": "bert-small:dim=8,heads=2,depth=1", "next tokens": "gpt-small:dim=8,heads=2,depth=1"}
"""What is predicted -> a network of some hundred parameters."""
