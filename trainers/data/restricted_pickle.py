"""Reads a pickle of plain containers and numeric numpy arrays, and refuses every other one without running it."""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import numpy as np

from landscape.errors import InputError


def loads(content: bytes, path: object) -> Any:
    """The object in `content`: containers, numbers, text, bytes and numeric arrays; Python 2 text comes as bytes.

    A pickle is a program that calls whatever `find_class` hands out and sets the state of what came back. Here those
    are stand-ins that only record a type, a shape and bytes: not even numpy's own reading of state sees the file. They
    have no attributes that the program could change.

    Raises:
        InputError: for a pickle that names anything else, or is damaged.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(content), path).load(), {})
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is corrupt: not a pickle of plain arrays ({type(error).__name__}: {error})") from None


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """`value` with the arrays in place of their stand-ins; anything but data is refused.

    `done` holds what was converted, by identity: what is shared within is converted once, or forty lists of ten
    references to the next would be 10^40 lists.
    """
    if isinstance(value, dict | list | tuple | _Array) and id(value) not in done:
        if isinstance(value, _Array):
            done[id(value)] = value.array()
        elif isinstance(value, dict):
            done[id(value)] = {key: _plain(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_plain(item, done) for item in value)
    if id(value) in done:
        return done[id(value)]
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
        return value
    raise ValueError(f"{type(value).__name__} is not data")


class _Dtype:
    """A numeric type as numpy pickles it: a code, then a state that gives the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any) -> None:
        self.dtype = np.dtype(code if isinstance(code, str) else bytes(code).decode("ascii"))
        if self.dtype.kind not in "biuf":
            raise ValueError(f"array of {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        _version, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise ValueError("array of records")
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">")


class _Array:
    """An array as numpy pickles it: empty, then a state that gives its shape, type and bytes."""

    __slots__ = ("state",)

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.state = (shape, dtype, "F" if fortran else "C", content)

    def array(self) -> np.ndarray:
        shape, dtype, order, content = self.state
        return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


class _Constructor:
    """A function of the pickle's, without attributes that the pickle could set."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return self.construct(*arguments)  # type: ignore[attr-defined]


class _NewDtype(_Constructor):
    __slots__ = ()

    def construct(self, code: Any, *flags: Any) -> _Dtype:
        return _Dtype(code)


class _Reconstruct(_Constructor):
    __slots__ = ()

    def construct(self, kind: Any, shape: Any, code: Any) -> _Array:
        return _Array()


class _FromBuffer(_Constructor):
    """What pickles of protocol 5 call."""

    __slots__ = ()

    def construct(self, content: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
        return _Array(shape, dtype, order, content)


class _Scalar(_Constructor):
    __slots__ = ()

    def construct(self, dtype: _Dtype, content: bytes) -> Any:
        return np.frombuffer(content, dtype.dtype, 1)[0].item()


class _Latin1(_Constructor):
    """How Python 3 writes bytes into a pickle of protocol 2."""

    __slots__ = ()

    def construct(self, text: str, encoding: Any) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise ValueError(f"text in {encoding!r}")
        return text.encode("latin1")


class _EmptyBytes(_Constructor):
    """How Python 3 writes b"" into a pickle of protocol 2."""

    __slots__ = ()

    def construct(self) -> bytes:
        return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # named as an argument only
    ("numpy", "dtype"): _NewDtype(),
    ("_codecs", "encode"): _Latin1(),
    ("__builtin__", "bytes"): _EmptyBytes(),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar() for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBuffer() for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):
    """The unpickler of the standard library that is written in Python, so that it can be asked about keys.

    A key that is a tuple of tuples is rehashed at every level: forty levels of two references are 2^40 steps.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, file: io.BytesIO, path: object) -> None:
        super().__init__(file, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for one of the constructors, or InputError."""
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"{self.path} was refused: it is a pickle that names {module}.{name}, an array file names only numpy's "
                "arrays: do not trust it, fetch the official file"
            )
        return _ALLOWED[module, name]

    def _setitem(self) -> None:
        _require_simple(self.stack[-2:-1])  # type: ignore[attr-defined]
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def _setitems(self) -> None:
        _require_simple(self.stack[::2])  # type: ignore[attr-defined]
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def _dict(self) -> None:
        _require_simple(self.stack[::2])  # type: ignore[attr-defined]
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def _sets(self) -> None:
        raise ValueError("a set")

    dispatch |= {
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_SET[0]: _sets,
        pickle.FROZENSET[0]: _sets,
    }


def _require_simple(keys: list[Any]) -> None:
    """Raise ValueError for keys that are no text, bytes or numbers."""
    for key in keys:
        if not isinstance(key, str | bytes | int | float | None):
            raise ValueError(f"a key of type {type(key).__name__}")
