"""The command `practice`: the whole loop, from labels to a reader that has practised what it misread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from recognizer.errors import UserError, one_line_errors, quoted

if TYPE_CHECKING:
    from pipelines.run import DataSettings

typer_app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Train a reader, find what it misreads, make lookalikes of that, and practise while it pays.",
)  # fmt: skip

S = TypeVar("S", bound="DataSettings")
Data = Annotated[list[Path] | None, typer.Option(help="Labelled pictures; repeatable.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="The run's folder; given again, the run goes on.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this run.")]
Start = Annotated[
    str | None, typer.Option("--from", help="Weights or run to start from, or 'nothing'; else the default reader.")
]
Unlabelled = Annotated[
    list[Path] | None,
    typer.Option(help="Pictures without labels, of which sure readings are practised as well; repeatable."),
]
Characters = Annotated[
    str | None,
    typer.Option("--charset", help="Characters to read; else those of the labels, and of your reader to start from."),
]
Limit = Annotated[int | None, typer.Option(help="Use only the first so many samples.")]
Jobs = Annotated[int | None, typer.Option(help="Trainings beside each other; else one a processor.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Config = Annotated[Path | None, typer.Option(help="Settings as TOML; options here go over it.")]
Pattern = Annotated[
    str | None, typer.Option("--label-pattern", help="Labels are in the file names, as in '{text}_{id}.png'.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value; repeatable.")]


def app() -> None:
    """The command, with one line for a user's mistake in place of a traceback."""
    with one_line_errors():
        typer_app()


@typer_app.command()
def run(
    data: Data = None,
    out: Out = None,
    resume: Resume = None,
    validation: Annotated[Path | None, typer.Option(help="To validate on; else a tenth of the labels, or ten.")] = None,
    test: Annotated[Path | None, typer.Option(help="Labelled pictures that are read once, at the end.")] = None,
    unlabelled: Unlabelled = None,
    charset: Characters = None,
    start: Start = None,
    methods: Annotated[str | None, typer.Option(help="Methods that make pictures, with commas.")] = None,
    rounds: Annotated[int | None, typer.Option(help="At most so many rounds; 3.")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts for reading out of fold; 3.")] = None,
    controls: Annotated[
        str | None,
        typer.Option(
            help="Say what mining added, with several seeds: classical, random, third, random-third, with commas."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each control; 3.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures that the first readers see; else by labels.")] = None,
    limit: Limit = None,
    jobs: Jobs = None,
    seed: Seed = None,
    label_pattern: Pattern = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Practise. Killed at any moment, the same command goes on; so it does with more controls."""
    from pipelines.practice import PracticeSettings, practice
    from pipelines.report import print_summary, write_report

    settings, out = _asked(
        PracticeSettings, "practice run", "practise", resume, out, config, sets,
        data=data, validation=validation, test=test, unlabelled=unlabelled or None, charset=charset,
        start=start, methods=methods and methods.split(","), rounds=rounds, folds=folds,
        controls=controls and controls.split(","), seeds=seeds, pictures=pictures, limit=limit,
        jobs=jobs, seed=seed, label_pattern=label_pattern,
    )  # fmt: skip
    practice(settings, out)
    path = write_report(out)
    print_summary(out)
    print(f"report: {path}")
    print(f"read with: recognizer predict --model {quoted(out)} PICTURE")


@typer_app.command()
def begin(
    unlabelled: Unlabelled = None,
    charset: Annotated[
        str | None,
        typer.Option(help="The characters that they show, as they show them: 'upper+digits', or themselves."),
    ] = None,
    length: Annotated[str | None, typer.Option(help="How many: 5, or 4-6.")] = None,
    out: Out = None,
    resume: Resume = None,
    test: Annotated[Path | None, typer.Option(help="Labelled pictures that are read once, at the end.")] = None,
    start: Start = None,
    rounds: Annotated[int | None, typer.Option(help="At most so many rounds of its own readings; 3.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures that each training sees; 12,000.")] = None,
    jobs: Jobs = None,
    seed: Seed = None,
    label_pattern: Pattern = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Begin without a label: draw text in looks bred from pictures, train on it and on what is read surely, again and
    again. Killed at any moment, the same command goes on."""
    from pipelines.begin import BeginSettings
    from pipelines.begin import begin as run_begin

    settings, out = _asked(
        BeginSettings, "practice begin", "begin", resume, out, config, sets, "unlabelled",
        unlabelled=unlabelled or None, charset=charset, length=length, test=test, start=start, rounds=rounds,
        pictures=pictures, jobs=jobs, seed=seed, label_pattern=label_pattern,
    )  # fmt: skip
    run_begin(settings, out)
    print((out / "begin.txt").read_text(encoding="utf-8"), end="")


@typer_app.command()
def compare(
    data: Data = None,
    test: Annotated[Path | None, typer.Option(help="Labelled pictures to compare on.")] = None,
    out: Out = None,
    resume: Resume = None,
    methods: Annotated[str | None, typer.Option(help="Methods, with commas; 'none' is real pictures alone.")] = None,
    unlabelled: Unlabelled = None,
    losses: Annotated[bool, typer.Option("--losses", help="Compare losses of a fixed-length head instead.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each method; 3.")] = None,
    charset: Characters = None,
    start: Start = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures that each training sees; else by labels.")] = None,
    limit: Limit = None,
    jobs: Jobs = None,
    seed: Seed = None,
    label_pattern: Pattern = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Say which method's pictures help, at equal compute. Killed at any moment, the same command goes on, also with
    more methods; pictures without labels are given from the start."""
    from pipelines.compare import CompareSettings
    from pipelines.compare import compare as run_comparison

    if losses:
        from pipelines.losses import LossSettings, compare_losses

        if methods or unlabelled:
            raise UserError(f"--losses compares losses: leave --{'methods' if methods else 'unlabelled'} out")
        told, out = _asked(
            LossSettings, "comparison of losses", "train", resume, out, config, sets, data=data, test=test,
            charset=charset, seeds=seeds, start=start, pictures=pictures, limit=limit, jobs=jobs, seed=seed,
            label_pattern=label_pattern,
        )  # fmt: skip
        compare_losses(told, out)
        print((out / "table.md").read_text(encoding="utf-8"), end="")
        return
    settings, out = _asked(
        CompareSettings, "comparison", "train", resume, out, config, sets,
        data=data, test=test, methods=methods and methods.split(","), unlabelled=unlabelled or None,
        charset=charset, seeds=seeds, start=start, pictures=pictures, limit=limit, jobs=jobs, seed=seed,
        label_pattern=label_pattern,
    )  # fmt: skip
    run_comparison(settings, out)
    print((out / "table.md").read_text(encoding="utf-8"), end="")


@typer_app.command()
def forecast(
    data: Data = None,
    test: Annotated[Path | None, typer.Option(help="Labelled pictures to read; else a part of data.")] = None,
    out: Out = None,
    resume: Resume = None,
    target: Annotated[float | None, typer.Option(help="Share read right to reach; 0.95.")] = None,
    at: Annotated[list[int] | None, typer.Option(help="Say what to expect of so many labels; repeatable.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each size; 3.")] = None,
    charset: Characters = None,
    start: Start = None,
    limit: Limit = None,
    jobs: Jobs = None,
    seed: Seed = None,
    label_pattern: Pattern = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Say what more labels would buy. Killed at any moment, the same command goes on."""
    from pipelines.forecast import ForecastSettings
    from pipelines.forecast import forecast as run_forecast

    settings, out = _asked(
        ForecastSettings, "forecast", "train", resume, out, config, sets,
        data=data, test=test, target=target, at=at or None, seeds=seeds, charset=charset, start=start,
        limit=limit, jobs=jobs, seed=seed, label_pattern=label_pattern,
    )  # fmt: skip
    run_forecast(settings, out)
    print((out / "forecast.txt").read_text(encoding="utf-8"), end="")
    print(f"plot: {out / 'forecast.png'}")


def _asked(
    cls: type[S], what: str, to: str, resume: Path | None, out: Path | None, config: Path | None,
    sets: list[str] | None, needs: str = "data", **options: Any,
) -> tuple[S, Path]:  # fmt: skip
    """The settings of a new run of that command and its folder, or those of the run to go on with.

    Raises:
        UserError: no folder or no data, settings that do not fit, or options beside --resume.
    """
    from pipelines.run import resumed_settings
    from recognizer.settings import load

    given = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        if given or not (out is None and config is None and sets is None):
            raise UserError("--resume goes on with the run's own settings: give nothing beside it")
        return resumed_settings(cls, resume, what), resume
    if out is None:
        raise UserError("say where the run goes: --out RUN")
    if not given.get(needs) and config is None:
        raise UserError(f"say what to {to} on: --{needs} DIR")
    for name in ("data", "unlabelled", "validation", "test"):
        if name in given:
            given[name] = [str(p) for p in given[name]] if isinstance(given[name], list) else str(given[name])
    return load(cls, config, given, sets or ()), out


@typer_app.command()
def status(
    out: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a practice, a beginning, a comparison or a forecast.")
    ],
) -> None:
    """Say where a run is."""
    from pipelines.report import print_status

    print_status(out)


@typer_app.command()
def report(out: Annotated[Path, typer.Argument(metavar="RUN", help="A practice run's folder.")]) -> None:
    """Write the HTML report of a run anew."""
    from pipelines.report import write_report

    print(f"report: {write_report(out)}")


@typer_app.command()
def scheme(
    out: Annotated[Path, typer.Argument(help="A new folder; its parts are labelled/, test/ and unlabelled/.")],
    labelled: Annotated[int, typer.Option(help="Labelled pictures.", min=1)] = 600,
    test: Annotated[int, typer.Option(help="Test pictures.", min=1)] = 1000,
    unlabelled: Annotated[int, typer.Option(help="Pictures without labels.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
) -> None:
    """Draw the embedded scheme that stands for your own pictures in the demonstration."""
    from pipelines.scheme import write_scheme

    write_scheme(out, labelled, test, seed, unlabelled)
    others = f", {unlabelled} without labels" if unlabelled else ""
    print(f"{out}: {labelled} labelled pictures{others} and {test} to test on")


if __name__ == "__main__":
    app()
