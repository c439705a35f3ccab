"""Settings: what is refused and how, which source goes over which, and that what was written is read back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from recognizer.errors import UserError
from recognizer.settings import Settings, load, make, to_toml


class Inner(Settings):
    noise: float = 0.5
    deeper: dict[str, Any] = Field({})


class Outer(Settings):
    data: tuple[str, ...] = ()
    name: str | None = None
    text: str = "abc"
    size: Literal["tiny", "base"] = "tiny"
    batch: int = Field(32, ge=2)
    rate: float = Field(1e-3, gt=0)
    fast: bool = False
    vary: Inner = Field(default_factory=Inner)
    frame: Inner = Field(default_factory=Inner)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_command_goes_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, 'text = "file"\nbatch = 4\n[vary]\nnoise = 0.1\n')
    found = load(Outer, file, {"batch": 8, "text": None, "size": "base"}, ["vary.noise=0.25", "batch=16"])
    assert found == Outer(text="file", batch=16, size="base", vary=Inner(noise=0.25))


def test_settings_do_not_change_once_made() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer().batch = 4  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["bach=4"], "settings: no setting is called 'bach'; did you mean 'batch'?"),
        (["vary.nois=1"], "settings: no setting is called 'vary.nois'; did you mean 'vary.noise'?"),
        (["noise=1"], "settings: no setting is called 'noise'; did you mean 'vary.noise'?"),
        (["batch=1"], "settings: batch = 1: Input should be greater than or equal to 2"),
        (["batch=many"], "settings: batch = 'many': Input should be a valid integer"),
        (["size=huge"], "settings: size = 'huge': Input should be 'tiny' or 'base'"),
        (["text=12"], "settings: text = 12: Input should be a valid string"),
        (["vary=1"], "settings: vary = 1: Input should be a valid dictionary"),
        (["data=[1]"], "settings: data.0 = 1: Input should be a valid string"),
        (["batch=4", "batch.size=3"], "--set batch.size: 'batch' is a value and has nothing below it"),
        (["batch"], "--set 'batch': write name=value"),
        (["=4"], "--set '=4': write name=value"),
        (["rate=inf"], "settings: rate = inf: Input should be a finite number"),
        (["rate=nan"], "settings: rate = nan: Input should be"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sets: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        load(Outer, None, {}, sets)
    assert str(refused.value).startswith(said)


def test_a_name_that_is_like_no_other_is_refused_with_all_that_there_are() -> None:
    with pytest.raises(UserError, match=r"called 'zzz'; there are data, name, .*vary\.noise, .*frame\.deeper"):
        make(Outer, {"zzz": 1})


def test_a_setting_that_must_be_given_is_asked_for_by_its_name() -> None:
    class Needs(Settings):
        data: tuple[str, ...]
        batch: int = 1

    with pytest.raises(UserError) as refused:
        make(Needs, {"batch": 3})
    assert str(refused.value) == "settings: data must be given"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"batch = ", "settings.toml: Invalid value"),
        (b"batch = 4\nbatch = 5", "settings.toml: Cannot overwrite a value"),
        (b'text = "\xff"', "settings.toml: 'utf-8' codec"),
        (b"bach = 4", "settings.toml: no setting is called 'bach'; did you mean 'batch'?"),
        (None, "settings.toml: no such settings file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load(Outer, file, {})
    assert str(refused.value).startswith(f"{tmp_path}/{said}")


# ------------------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("text=0012", "0012"),  # no TOML number, and so it stays as it is
        ("text=1E23x", "1E23x"),
        ('text="1E23"', "1E23"),
        ("text=NA", "NA"),
        ("text='true'", "true"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("text=#1", "#1"),
        ("text=a b, c", "a b, c"),
        ("text=ünïcode ✓", "ünïcode ✓"),
        ("batch=64", 64),
        ("rate=2e-4", 2e-4),
        ("rate=1", 1.0),
        ("fast=true", True),
        ('data=["a", "b"]', ("a", "b")),
        ("name=C:\\new", "C:\\new"),
    ],
)
def test_set_reads_toml_where_it_is_toml_and_else_text(item: str, value: object) -> None:
    assert getattr(load(Outer, None, {}, [item]), item.partition("=")[0]) == value


@pytest.mark.parametrize("item", ["text=true", "text=12", "text=1979-05-27", "text=1_000"])
def test_a_text_that_looks_like_something_else_is_never_changed(item: str) -> None:
    with pytest.raises(UserError, match="valid string"):
        load(Outer, None, {}, [item])


def test_set_cannot_smuggle_a_second_setting_in() -> None:
    assert load(Outer, None, {}, ["text=1\nbatch = 5"]) == Outer(text="1\nbatch = 5")


# ------------------------------------------------------------------------------------------------------- to and from


def back(settings: Settings, tmp_path: Path) -> Settings:
    return load(type(settings), written(tmp_path, to_toml(settings)), {})


def test_what_is_written_is_read_back_the_same(tmp_path: Path) -> None:
    deeper = {"a": 1, "b": {"c": [0.5, True], "d": {"e": "x"}}, "my.module:Class": {"strength": 2}, "": "empty"}
    full = Outer(
        data=("a/b", 'quote " and \\', ""), name="日本 ✓\n\t", text="\x7f\x00", size="base", batch=10**15, rate=1e-7,
        fast=True, vary=Inner(noise=1e300, deeper=deeper), frame=Inner(noise=0.1 + 0.2),
    )  # fmt: skip
    assert back(full, tmp_path) == full
    assert back(Outer(), tmp_path) == Outer()  # None is left out and comes back as None


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANY_DEPTH = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@bounds(max_examples=150, deadline=None)
@given(text=TEXT, data=st.lists(TEXT, max_size=3), deeper=st.dictionaries(TEXT, ANY_DEPTH, max_size=3))
def test_anything_that_is_written_is_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: list[str], deeper: dict[str, Any]
) -> None:
    full = Outer(text=text, name=text, data=tuple(data), vary=Inner(deeper=deeper))
    assert back(full, tmp_path_factory.getbasetemp()) == full


def test_the_settings_of_training_are_read_back_the_same(tmp_path: Path) -> None:
    from recognizer.training.train import TrainSettings

    sets = ["frame.max_width=256", "vary.noise=0", 'charset="0O1l"', "start=../runs/a b", 'label_pattern="{text}.png"']
    full = load(TrainSettings, None, {"data": ["a", "b"], "seed": 3, "size": "base", "with_synthetic": ["c"]}, sets)
    assert back(full, tmp_path) == full
