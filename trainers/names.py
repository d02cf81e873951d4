"""Names with arguments as the command line writes them: ``toy2d:variance=15,n=2000``; light, without torch.

A value is an integer, a number, true, false, none, a tuple written ``3x32x32`` or ``(3,32,32)``, or text.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from landscape.errors import InputError
from landscape.registry import Entry, Option

FILE_PREFIXES = ("npz:", "hdf5:", "pt:", "images:", "glue:")
"""Names that go on with a path: everything after the prefix belongs to the name, commas and equal signs too."""

_WORDS = {"true": True, "false": False, "none": None}


def parse_name(text: str) -> tuple[str, dict[str, Any]]:
    """``name:key=value,...`` -> name and arguments; ``npz:PATH`` and its kin come back whole.

    Raises:
        InputError: for an argument that is not ``key=value``, given twice, or an empty name.
    """
    text = text.strip()
    if text.startswith(FILE_PREFIXES):
        return text, {}
    name, _, rest = text.partition(":")
    if not name:
        raise InputError(f"{text!r} has no name: write NAME or NAME:key=value,key=value")
    arguments: dict[str, Any] = {}
    for part in re.split(r",(?![^(]*\))", rest) if rest else []:
        try:
            key, value = parse_argument(part)
        except InputError:
            raise InputError(f"{part!r} in {text!r} is not an argument: write NAME:key=value,key=value") from None
        if key in arguments:
            raise InputError(f"argument {key!r} is given twice in {text!r}: give it once")
        arguments[key] = value
    return name, with_none_named(arguments)


def with_none_named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a built-in name: `normalization=none` is one of the normalizations, not the default."""
    return {k: "none" if k == "normalization" and v is None else v for k, v in arguments.items()}


def parse_argument(text: str) -> tuple[str, Any]:
    """``key=value`` -> key and value.

    Raises:
        InputError: not of that form.
    """
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key.isidentifier() or not value.strip():
        raise InputError(f"{text!r} is not an argument: write key=value")
    return key, _value(value.strip())


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if re.fullmatch(r"\d+(x\d+)+", text):
        return tuple(int(size) for size in text.split("x"))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | tuple) else text


def checked_arguments(entry: Entry, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `entry`: the `arguments` in the declared types, the defaults for the others.

    Raises:
        InputError: for an option that does not exist (with the nearest one) or a value of another type.
    """
    chosen = {entry.option(name).name: value for name, value in arguments.items()}
    return {option.name: _typed(entry, option, chosen.get(option.name, option.default)) for option in entry.options}


def convert_fields(record: Any) -> None:
    """Give the fields of a frozen dataclass their declared types, in place: numbers of NumPy and torch become Python's.

    An int stays one where a float is declared. Paths become text.

    Raises:
        InputError: a value of another type.
    """
    for field in dataclasses.fields(record):
        value, type_text = getattr(record, field.name), str(field.type).replace(" ", "")
        optional, name = type_text.endswith("|None"), type_text.removesuffix("|None")
        if name not in _EXACT or type(value) in _EXACT[name] or (optional and value is None):
            continue
        try:
            object.__setattr__(record, field.name, _converted(value, name))
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise InputError(f"{field.name} must be {_NEEDED[name]}, received {value!r}") from None


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int.

    Raises:
        InputError: no whole number, or one below `least`.
    """
    try:
        number = _integer(value)
    except (TypeError, ValueError, OverflowError):
        number = least - 1
    if isinstance(value, str) or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, received {value!r}")
    return number


def _converted(value: Any, name: str) -> Any:
    if name == "str":
        return str(os.fspath(value))
    # Text is a number, or a flag, on the command line alone.
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, str) or (name == "bool" and type(plain) is not bool):
        raise TypeError
    return plain if name == "bool" else _CONVERTERS[name](plain)


_EXACT: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}
_NEEDED = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "text"}


def _typed(entry: Entry, option: Option, value: Any) -> Any:
    kind = option.type.replace(" ", "")
    if value is None and kind.endswith("|None"):
        return None
    try:
        return _CONVERTERS[kind.removesuffix("|None")](value)
    except (TypeError, ValueError, OverflowError):
        message = f"{option.name}={value!r} of {entry.name!r} is not of type {option.type}: {option.help}"
        raise InputError(message) from None


def _integer(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or math.isnan(float(value)):
        raise ValueError
    return float(value)


def _flag(value: Any) -> bool:
    word = _WORDS.get(str(value).lower())
    if word is None:
        raise ValueError
    return word


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(_integer(v) for v in (value if isinstance(value, tuple | list) else (value,)))


def _numbers(value: Any) -> float | tuple[float, ...]:
    return tuple(_number(v) for v in value) if isinstance(value, tuple | list) else _number(value)


_CONVERTERS = {
    "int": _integer,
    "float": _number,
    "bool": _flag,
    "str": _text,
    "Direction": _text,
    "tuple[int,...]": _integers,
    "float|tuple[float,...]": _numbers,
}
