"""The script that measures source trees, on one that can be counted by hand."""

from docs import house

FILES = {
    "pkg/__init__.py": "from pkg.a import first",
    "pkg/a.py": """
        # no line
        from typing import TYPE_CHECKING
        from . import b

        if TYPE_CHECKING:
            from pkg import d


        def first(x: int, *, y: float = 0.0) -> float:
            '''No line of the body.'''
            # nor this

            return x + y


        class Thing:
            def method(self, z) -> None:
                from pkg.c import deep
                deep(z)

            @staticmethod
            def free(z: int) -> int:
                return z
        """,
    "pkg/b.py": "try:\n    import pkg.c\nexcept ImportError:\n    from pkg import d",
    "pkg/c.py": "from . import d\ndeep = print",
    "pkg/d.py": "",
    "setup.py": "nothing = 1",
    "docs/conf.py": "nothing = 1",
    "tests/test_a.py": "def test_first():\n    pass\n",
}


def tree(folder):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    return folder


def test_a_tree_counted_by_hand(tmp_path):
    row = house.measured(tree(tmp_path / "project"))
    assert row["tree"] == "project"
    assert row["files"] == "5"
    assert row["lines"] == str(1 + 14 + 4 + 2)
    assert row["body: median / p90 / max"].split(" / ") == ["1", "2", "2"]
    assert row["parameters: median / p90 / max"].split(" / ") == ["1", "2", "2"]
    assert row["tests / code"] == "0.10"
    assert row["annotated"] == "67%"
    assert row["import depth: at import / all"] == "5 / 5"  # pkg, a, b, c, d


def test_a_package_may_be_given_instead_of_its_project(tmp_path):
    row = house.measured(tree(tmp_path) / "pkg")
    assert (row["files"], row["tests / code"]) == ("5", "-")


def test_depth_apart_from_what_runs_later(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "__init__.py").write_text("")
    (tmp_path / "one" / "a.py").write_text("def late():\n    from one import b\n")
    (tmp_path / "one" / "b.py").write_text("from one import c\n")
    (tmp_path / "one" / "c.py").write_text("import one.b\n")
    code, _ = house.modules(tmp_path)
    assert house.depth(code, deferred=False) == 2  # the ring of b and c
    assert house.depth(code, deferred=True) == 3
