"""Entries are found by reading their files."""

import sys
import textwrap

import pytest

from landscape import InputError
from landscape.registry import Registry

ENTRY = '''
import torch_is_not_imported_by_reading

from landscape.registry import register


@register("{name}", plain_radius=True)
def measure(problem, *, rho: float = 0.05, steps: int = 20, hidden: str = "x"):
    """What it is.

    Args:
        problem: the loss.
        rho: radius,
            of the ball.
        steps: of the ascent.

    Returns:
        hidden: not an option.
    """
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_measures"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("some_measures", None)


def test_reads_without_importing(package):
    (package / "first.py").write_text(ENTRY.format(name="first"))
    entry = Registry("some_measures", "measure").entry("first")
    assert entry.summary == "What it is"
    assert [(o.name, o.type, o.default, o.help) for o in entry.options] == [
        ("rho", "float", 0.05, "radius, of the ball."),
        ("steps", "int", 20, "of the ascent."),
    ]
    assert entry.facts == {"plain_radius": True}


def test_imports_when_used(package):
    (package / "second.py").write_text(
        ENTRY.format(name="second").replace("import torch_is_not_imported_by_reading", "")
    )
    registry = Registry("some_measures", "measure")
    assert registry["second"].registered_name == "second"
    assert list(registry) == ["second"]


def test_fields_of_a_dataclass(package):
    code = '''
    from dataclasses import dataclass
    from typing import ClassVar
    from landscape.registry import register

    @register("k-sam")
    @dataclass(frozen=True)
    class KSam:
        """A method.

        Args:
            k: examples kept.
        """
        title: ClassVar[str] = "no option"
        k: int | None = None
    '''
    (package / "k_sam.py").write_text(textwrap.dedent(code))
    option = Registry("some_measures", "method").entry("k-sam").option("k")
    assert (option.type, option.default) == ("int | None", None)


def test_a_duplicate_names_both_files(package):
    (package / "a.py").write_text(ENTRY.format(name="same"))
    (package / "b.py").write_text(ENTRY.format(name="same"))
    with pytest.raises(InputError, match=r"called 'same': .*a\.py and .*b\.py"):
        list(Registry("some_measures", "measure"))


def test_unknown_names_suggest_the_nearest(package):
    (package / "a.py").write_text(textwrap.dedent(ENTRY.format(name="sam_sharpness")))
    with pytest.raises(InputError, match="unknown measure 'sam-sharpnes': did you mean 'sam_sharpness'"):
        Registry("some_measures", "measure").entry("sam-sharpnes")


def test_options_may_be_those_of_a_dataclass_that_several_have_in_common(package):
    form = '''
    import torch_is_not_imported_by_reading


    class Other:
        size: int = 1


    @dataclass
    class Form:
        """Of all.

        Args:
            size: of one,
                in pixels.
        """

        size: int | None = None
        inner: int = 3
    '''
    (package / "forms.py").write_text(textwrap.dedent(form))
    for name in "ab":
        entry = (
            f'@register("{name}", file="FILE", options="forms.Form")\ndef {name}(source, **options):\n    """It."""\n'
        )
        (package / f"{name}.py").write_text(entry)
    registry = Registry("some_measures", "measure")
    for entry in registry.entries.values():
        assert [(o.name, o.type, o.default, o.help) for o in entry.options] == [
            ("size", "int | None", None, "of one, in pixels.")
        ]
        assert entry.facts == {"file": "FILE"}
