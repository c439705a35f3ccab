"""The shape of the project: which way its parts lean, what its tables promise, and what stands nowhere in it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recognizer", "augment", "pipelines")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(module: str) -> str:
    return module.partition(".")[0]


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules that statements import; what is imported for types alone does not count."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # it may be a module


def at_top(module: ast.Module) -> Iterator[ast.AST]:
    """What runs when a module is imported: no function's inside, and no `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def calls(of: str) -> dict[str, int]:
    """How often each file calls a method or function of that name."""
    found: dict[str, int] = {}
    for path in FILES:
        names = [
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
        ]
        if of in names:
            found[name_of(path)] = names.count(of)
    return found


# --------------------------------------------------------------------------------------------------- which way it leans


def test_nothing_is_imported_against_the_arrow() -> None:
    """recognizer <- augment <- pipelines."""
    may = {package: set(PACKAGES[: i + 1]) for i, package in enumerate(PACKAGES)}
    for path in FILES:
        used = {package_of(module) for module in imports(ast.walk(tree(path)))} & set(PACKAGES)
        assert used <= may[package_of(name_of(path).replace("/", "."))], name_of(path)


def test_the_arrow_is_used() -> None:
    used = {
        package: {
            package_of(m) for p in FILES if name_of(p).startswith(package + "/") for m in imports(ast.walk(tree(p)))
        }
        for package in PACKAGES
    }
    assert "recognizer" in used["augment"] and {"augment", "recognizer"} <= used["pipelines"]


TRAIN_EXTRA = {re.split(r"[<>=\[]", needed)[0] for needed in PROJECT["optional-dependencies"]["train"]}


@pytest.mark.parametrize("path", sorted((ROOT / "recognizer").glob("*.py")), ids=name_of)
def test_reading_needs_nothing_of_the_train_extra(path: Path) -> None:
    used = set(imports(at_top(tree(path))))
    assert not {package_of(module) for module in used} & TRAIN_EXTRA
    assert not [module for module in used if module.startswith(("recognizer.training", "recognizer.deploy"))]


def test_a_reader_works_where_the_train_extra_is_not_installed() -> None:
    modules = [f"recognizer.{path.stem}" for path in (ROOT / "recognizer").glob("*.py") if path.stem != "__init__"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(TRAIN_EXTRA)!r})); import {', '.join(modules)}; "
        "from recognizer.reader import Reader"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_labelling_page_opens_where_the_train_extra_is_not_installed(tmp_path: Path) -> None:
    """Through the command: the folder is empty, and that is all that is wrong."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(TRAIN_EXTRA)!r})); sys.argv[1:] = ['label', '.']; "
        "from recognizer.cli import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: .: no picture is there\n")


def test_two_files_train_and_no_more() -> None:
    loops = calls("backward")
    assert set(loops) <= {"recognizer/training/train.py", "augment/fit.py"}
    assert loops["recognizer/training/train.py"] == 1


# -------------------------------------------------------------------------------------------------- what stands nowhere


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in FILES} & {"utils", "common", "helpers", "base", "core", "misc"}
    assert max(len(path.relative_to(ROOT).parts) for path in FILES) <= 3


def test_no_strangers_code_is_run() -> None:
    """Weights are safetensors: `torch.load` and `pickle` run what a stranger wrote into a file."""
    for path in FILES:
        assert not {package_of(m) for m in imports(ast.walk(tree(path)))} & {"pickle", "cloudpickle", "dill", "joblib"}
        words = r"\btorch\.load\(|(?<![.\w])(eval|exec)\(|os\.system|shell=True|allow_pickle=True"
        assert not re.search(words, path.read_text(encoding="utf-8")), name_of(path)


def test_nothing_talks_to_a_web_site() -> None:
    clients = {"requests", "httpx", "aiohttp", "urllib3", "selenium", "playwright", "scrapy", "bs4", "mechanize"}
    for path in FILES:
        used = set(imports(ast.walk(tree(path))))
        assert not {package_of(module) for module in used} & clients, name_of(path)
        assert not used & {"urllib.request", "http.client"}, name_of(path)


# ------------------------------------------------------------------------------------------------------------ its words


@pytest.mark.parametrize("path", [path for path in FILES if path.stat().st_size], ids=name_of)
def test_everything_public_says_what_it_is(path: Path) -> None:
    module = tree(path)
    silent = [
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and (isinstance(node, ast.ClassDef) or len(node.body) > 2)  # of less, name and types say it all
    ]
    assert ast.get_docstring(module) and not silent, silent


# ----------------------------------------------------------------------------------------------------------- its tables


def kinds(of: str, place: int) -> set[str]:
    """The texts that stand at a place of every call of a name."""
    found = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == of and len(node.args) > place:
                argument = node.args[place]
                if isinstance(argument, ast.Constant):
                    found.add(argument.value)
    return found


def test_every_reason_is_given_and_every_one_given_has_its_advice() -> None:
    from augment.fidelity import REFUSALS
    from recognizer.samples import REASONS

    given = kinds("PictureError", 0) | kinds("Problem", 1)
    assert given == set(REASONS) | set(REFUSALS)
    assert all(advice for advice in (*REASONS.values(), *REFUSALS.values()))


def test_every_method_is_there_and_keeps_its_contract_in_name() -> None:
    from augment.methods import METHODS, load_class
    from recognizer.settings import Settings

    for name, (where, what) in METHODS.items():
        cls = load_class(name)
        assert f"{cls.__module__}:{cls.__name__}" == where and what
        assert issubclass(cls.Settings, Settings) and isinstance(cls.needs_source, bool)
    files = {path.stem for path in (ROOT / "augment" / "methods").glob("*.py")} - {"__init__"}
    assert {where.partition(":")[0].rpartition(".")[2] for where, _ in METHODS.values()} == files


def choices(field: Any) -> set[str]:
    return set(get_args(getattr(field, "annotation", field)))


def test_every_choice_of_training_is_in_its_table() -> None:
    from recognizer.cli import Head, Size
    from recognizer.training.losses import LOSSES
    from recognizer.training.model import SIZES, HeadName, Network
    from recognizer.training.train import TrainSettings

    fields = TrainSettings.model_fields
    assert choices(get_args(fields["loss"].annotation)[0]) == set(LOSSES)
    assert choices(get_args(fields["size"].annotation)[0]) == set(SIZES) == set(Size)
    assert choices(fields["head"]) == set(get_args(HeadName)) == set(Head)
    for size in SIZES:
        parameters = sum(p.numel() for p in Network(size, get_args(HeadName), 37, 8).parameters())
        assert parameters < {"tiny": 1.6e6, "small": 3e6, "base": 4e6}[size]


def test_every_option_of_train_is_a_setting() -> None:
    """An option that no setting answers to would be refused only when someone gives it."""
    from recognizer.training.train import TrainSettings

    [function] = [node for node in tree(ROOT / "recognizer" / "cli.py").body if getattr(node, "name", "") == "train"]
    assert isinstance(function, ast.FunctionDef)
    options = {argument.arg for argument in function.args.args}
    assert options - {"out", "resume", "config", "sets"} <= set(TrainSettings.model_fields)


def test_what_is_missing_is_named_with_its_extra() -> None:
    """Every module of an extra that the project imports is in the table that says how to install it."""
    from recognizer.errors import EXTRA_OF

    extras = PROJECT["optional-dependencies"]
    modules = {
        "fastapi-offline": "fastapi_offline", "prometheus-client": "prometheus_client",
        "python-multipart": "python_multipart", "scikit-learn": "sklearn",
    }  # fmt: skip
    packages = {
        modules.get(name, name): extra
        for extra in ("train", "serve", "sd")
        for needed in extras[extra]
        if (name := re.split(r"[<>=\[]", needed)[0]) != "lookalike"
    }
    for module, extra in EXTRA_OF.items():
        assert packages[module] == extra, module
    imported = {package_of(m) for path in FILES for m in imports(ast.walk(tree(path)))}
    assert imported & packages.keys() <= EXTRA_OF.keys()
    dependencies = {re.split(r"[<>=\[]", needed)[0] for needed in PROJECT["dependencies"]}
    known = {"PIL": "pillow", "markupsafe": "jinja2"}  # jinja2 itself needs markupsafe
    others = {known.get(m, m) for m in imported} - sys.stdlib_module_names - {*PACKAGES} - packages.keys()
    assert others == dependencies, "imported and no dependency, or a dependency and not imported"


def test_every_command_of_the_project_is_there() -> None:
    assert set(PROJECT["scripts"]) == {"recognizer", "augment", "practice"}
    for where in PROJECT["scripts"].values():
        module, _, attribute = where.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)
