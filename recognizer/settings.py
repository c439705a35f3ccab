"""Settings: typed classes that live beside their owner, from a TOML file and `--set a.b=c`, refused where unknown."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from recognizer.errors import UserError


class Settings(BaseModel):
    """A frozen set of named values. Unknown names and values of the wrong type are refused at the door."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def make(cls: type[S], values: Mapping[str, Any], where: str = "settings") -> S:
    """A settings object of `values` (nested mappings for nested settings).

    Raises:
        UserError: an unknown name (with the nearest known one), or a value that does not fit.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: no setting is called {name!r}{_nearest(name, _names(cls))}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: {name} must be given") from None
        raise UserError(f"{where}: {name or cls.__name__} = {first['input']!r}: {first['msg']}") from None


def load(cls: type[S], file: Path | None, given: Mapping[str, Any], sets: Sequence[str] = ()) -> S:
    """Settings from a TOML file, over it the command's own options (`None` is not given), over them `--set a.b=c`.

    The value of `--set` is read as TOML where it is TOML (`0.5`, `true`, `[1, 2]`, `"0012"`), else as text.

    Raises:
        UserError: as `make`, or a file that cannot be read.
    """
    values: dict[str, Any] = {}
    where = "settings"
    if file is not None:
        where = str(file)
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{file}: no such settings file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: {error}") from None
    for name, value in given.items():
        if value is not None:
            _put(values, name, value)
    for item in sets:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise UserError(f"--set {item!r}: write name=value")
        try:
            read = tomllib.loads(f"v = {text}")
        except tomllib.TOMLDecodeError:
            read = {}
        _put(values, name.strip(), read["v"] if list(read) == ["v"] else text)
    for text in _texts(values):
        see_utf8(text)
    return make(cls, values, where)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def see_utf8(text: str) -> None:
    """See that text can be written: a file's name is bytes on Linux, and need not be UTF-8.

    Raises:
        UserError: it is not.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text.encode('utf-8', 'surrogateescape')!r} is not UTF-8: rename it") from None


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {name}: {part!r} is a value and has nothing below it")
        values = inner
    values[last] = value


def _names(cls: type[Settings], prefix: str = "") -> list[str]:
    names = []
    for name, info in cls.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            names += _names(info.annotation, f"{prefix}{name}.")
    return names


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def to_toml(settings: Settings) -> str:
    """Settings as TOML that `load` reads back."""
    return "\n".join(_table(settings.model_dump(mode="json"), ())) + "\n"


def is_dump(cls: type[Settings], file: Path) -> bool:
    """Whether a file is what `to_toml` wrote, byte for byte, and not somebody's own."""
    try:
        return file.read_text(encoding="utf-8") == to_toml(load(cls, file, {}))
    except (OSError, ValueError, UserError):
        return False


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(_key, path))}]"] if path else []
    lines += [f"{_key(k)} = {_toml(v)}" for k, v in values.items() if not isinstance(v, Mapping) and v is not None]
    for name, inner in values.items():
        if isinstance(inner, Mapping):
            lines += ["", *_table(inner, (*path, name))]
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    # JSON's strings, numbers and booleans are TOML's, but for one control character that JSON leaves as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
