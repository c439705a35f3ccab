"""The report and the summary of a practice run at every stage, and the ledger that they are made from."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import Page
from PIL import Image

from augment.method import Request, Sources
from augment.mining import by_look, mine, plan, write_mined
from augment.synthesize import synthesize
from pipelines.ledger import Ledger, locked
from pipelines.report import PANEL, PracticeRun, curve, learning, print_summary, told_aside, verdict, write_report
from pipelines.scheme import CHARACTERS, write_scheme
from recognizer.errors import UserError
from recognizer.readings import Reading, Scores, confusions, mcnemar
from recognizer.samples import Manifest, Sample, read_manifest, split, write_folder
from recognizer.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
VARYING = f"{__name__}:Tilt"
HOSTILE = "<script>alert(1)</script>"
TAKEN_FOR = {"0": "O", "O": "0", "1": "I", "I": "1", "5": "S", "S": "5", "8": "B", "B": "8", "Z": "2", "2": "Z"}
STEPS = ["prepare", "baseline", "round 1 mine", "round 1", "round 2 mine", "round 2", "settled", "chosen", "test"]
SURELY = "WRONG"  # what is read, surely, where a label is wrong
REFUSED = {"reason": "too hard", "detail": "read as '<b>', 2.31 nats a character, over 1.20"}
Pairs = list[tuple[str, str]]


class Tilt:
    """A method of a user's own, quick and without torch: it turns a real picture a little."""

    Settings: ClassVar = Settings
    needs_source = True
    exact_text = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        both = zip(requests, sources, strict=True)
        return [s.rotate(float(r.rng().uniform(-8, 8)), fillcolor="white") for r, s in both if s]


# ------------------------------------------------------------------------------------------------------- a run's folder


def misread(text: str, care: float, rng: np.random.Generator) -> str:
    """What a reader that looks with `care`, 0 to 1, reads: likely twins taken for each other, some characters lost."""
    read = [TAKEN_FOR.get(c, "" if rng.random() < 0.3 else c) if rng.random() > care else c for c in text]
    return "".join(read)


def pairs_of(samples: Sequence[Sample], care: float, seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    return [(s.text, misread(s.text, care, rng)) for s in samples]


def scores(pairs: Pairs) -> dict[str, object]:
    return Scores.of(pairs).to_dict()


def build(
    run: Path, labelled: int = 40, test: int = 60, test_care: tuple[float, float, float] = (0.7, 0.8, 0.95)
) -> Path:
    """A finished run of two rounds as `practise` leaves it, but for the weights: what was read is made up."""
    write_scheme(run.parent / "scheme", labelled, test)
    run.mkdir()
    (run / "settings.toml").write_text(
        f'data = ["{run.parent}/scheme/labelled"]\ntest = "{run.parent}/scheme/test"\nrounds = 2\nfolds = 2\n'
        f'start = "nothing"\nmethods = ["captcha", "{VARYING}"]\nmade = 2.0\neven = 0.5\nseed = 7\n\n[reader]\n'
    )
    ledger = Ledger(run / "ledger.jsonl")
    train, validation = split(read_manifest(run.parent / "scheme" / "labelled").samples, (0.75, 0.25))
    for name, part in (("train", train), ("validation", validation)):
        write_folder(part, run / "data" / name)
    train = list(read_manifest(run / "data" / "train"))
    ledger.record(
        "prepare", train=len(train), validation=len(validation), test=test, charset=CHARACTERS, problems=0,
        leaks={"test": 2, "validation": 0},
        provenance={"commit": "abc1234", "python": "3.11", "device": "cpu"}, seconds=0.4,
    )  # fmt: skip
    every = [*validation, *train]
    ledger.record(
        "baseline", validation=scores(pairs_of(validation, 0.7, 1)), held_out=scores(pairs_of(every, 0.7, 1)),
        nats=0.5, seconds=95.0,
    )  # fmt: skip
    for number in (1, 2):
        make_round(run, ledger, number, train)
        ledger.record(
            f"round {number}", pupil=scores(pairs_of(validation, 0.8 + 0.07 * number, 2)),
            control=scores(pairs_of(validation, 0.75 + 0.03 * number, 3)),
            before=scores(pairs_of(validation, 0.7, 1)), goes_on=number == 1, seconds=42.0,
            held_out={
                "pupil": scores(pairs_of(every, 0.8 + 0.07 * number, 2)),
                "control": scores(pairs_of(every, 0.75 + 0.03 * number, 3)),
            },
        )  # fmt: skip
    ledger.record(
        "settled", reader="round-1/settled-mean", pupil=scores(pairs_of(validation, 0.94, 2)),
        control=scores(pairs_of(validation, 0.8, 3)), seconds=2.0,
    )  # fmt: skip
    ledger.record(
        "chosen", reader="round-1/settled-mean", practised=True, control="round-1/control",
        validation=scores(pairs_of(validation, 0.94, 2)), control_validation=scores(pairs_of(validation, 0.8, 3)),
        seconds=1.2,
    )  # fmt: skip
    record_test(ledger, read_manifest(run.parent / "scheme" / "test").samples, test_care)
    return run


def make_round(run: Path, ledger: Ledger, number: int, train: Sequence[Sample]) -> None:
    folder, pairs = run / f"round-{number}", pairs_of(train, 0.7, number)
    readings = [
        Reading(read, 0.5, (), nll=0.1 if read == text else 2.0 + i % 7) for i, (text, read) in enumerate(pairs)
    ]
    readings[:2] = [Reading(SURELY, 0.99, (), nll=20.0)] * 2
    mined = mine(train, readings, looks=[i % 5 == 0 for i in range(len(train))])
    vary, draw = plan(mined, train, 2 * len(train), number)
    write_mined(mined, [], folder / "mined")
    sources = Sources(Manifest(tuple(train)))
    kept, refused, methods = [], [], {}
    for name, asked in (("captcha", draw[: len(train)]), (VARYING, vary[: len(train)])):
        own = folder / "even" / "made" / name
        synthesize(name, {}, asked, own, sources)
        made = [Sample(f"{name}/{s.name}", s.text, s.path, meta=s.meta) for s in read_manifest(own)]
        kept += made[:-3]
        refused += [json.dumps({"file_name": s.name, **REFUSED}) + "\n" for s in made[-3:]]
        methods[name] = {
            "asked": len(asked), "kept": len(made) - 3, "refused": {"too hard": 3}, "read_right": 0.25, "seconds": 1.5
        }  # fmt: skip
    (folder / "even" / "refused.jsonl").write_text("".join(refused))
    write_folder(kept, folder / "kept")
    hard = sum(h.misread for h in mined.hard)
    ledger.record(
        f"round {number} mine", read=len(train), misread=hard, near=len(mined.hard) - hard, out_of_fold=scores(pairs),
        methods=methods, kept=len(kept), seconds=8.0, suspects=len(mined.suspects), looks=by_look(mined),
        kinds=mined.kinds, weights={"captcha": 0.5 + 0.1 * number, VARYING: 0.5 - 0.1 * number},
    )  # fmt: skip


def record_test(ledger: Ledger, samples: Sequence[Sample], care: tuple[float, float, float]) -> None:
    found = {role: pairs_of(samples, c, 4) for role, c in zip(("before", "control", "after"), care, strict=True)}
    rows = [
        {"file_name": s.name, "text": s.text, **{role: own[i][1] for role, own in found.items()}}
        for i, s in enumerate(samples)
    ]
    right = {role: [text == read for text, read in own] for role, own in found.items()}
    ledger.record(
        "test", set_aside=0, readings=rows, **{role: scores(own) for role, own in found.items()},
        p_before=mcnemar(right["before"], right["after"]), p_control=mcnemar(right["control"], right["after"]),
        seconds=2.4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("practice") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(run: Path, step: str, **facts: object) -> None:
    """Put other facts into a ledger's entry."""
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    lines = [json.dumps(e | facts if e["step"] == step else e) + "\n" for e in entries]
    (run / "ledger.jsonl").write_text("".join(lines))


# --------------------------------------------------------------------------------------------------------- the report


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_page_loads_nothing_and_every_picture_opens(run: Path) -> None:
    page = page_of(run)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    source = (run / "report.html").read_text()
    assert "http:" not in source and "https:" not in source and "url(" not in source and "@import" not in source
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset"):
                assert value.startswith(("data:image/jpeg;base64,", "#")), f"<{tag} {name}={value[:40]}>"
    pictures = page.all("img")
    assert len(pictures) > 50 and all(attrs["alt"] for attrs in pictures)
    for attrs in pictures:
        Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2]))).verify()
    anchors = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {attrs["href"][1:] for attrs in page.all("a")} <= anchors
    assert [path.name for path in run.glob(".report*")] == []


def test_the_headline_says_what_the_test_set_says(run: Path) -> None:
    page, entry = page_of(run), Ledger(run / "ledger.jsonl")["test"]
    assert entry["p_before"] < 0.05 and entry["p_control"] < 0.05
    right = sum(r["after"] == r["text"] for r in entry["readings"])
    assert "Practice paid" in page.text and f"Of 60 test pictures the reader reads {right}" in page.text
    low, high = entry["after"]["exact_interval"]
    assert (
        f"{100 * entry['after']['exact']:.1f} %" in page.text and f"{100 * low:.1f} to {100 * high:.1f} %" in page.text
    )


@pytest.mark.parametrize(
    ("before", "control", "p_before", "p_control", "title"),
    [
        (0.2, 0.4, 0.001, 0.001, "Practice paid"),
        (0.2, 0.4, 0.001, 0.30, "Practice did not pay here"),
        (0.2, 0.4, 0.20, 0.001, "Practice shows no gain beyond chance"),
        (0.9, 0.4, 0.001, 0.001, "Practice did harm here"),
        (0.2, 0.9, 0.001, 0.001, "Practice did not pay here"),
    ],
)
def test_practice_pays_only_beyond_chance_over_both(
    run: Path, before: float, control: float, p_before: float, p_control: float, title: str
) -> None:
    entry = Ledger(run / "ledger.jsonl")["test"]
    facts = {
        role: {**entry[role], "exact": v} for role, v in (("before", before), ("control", control), ("after", 0.6))
    }
    change(run, "test", **facts, p_before=p_before, p_control=p_control)
    assert verdict(PracticeRun.open(run)).title == title


def test_what_learned_anew_is_compared_with_what_learned_as_long_before(run: Path) -> None:
    before = Ledger(run / "ledger.jsonl")["test"]["before"]
    alone = f"{round(before['exact'] * 60)} ({100 * before['exact']:.1f} %) before it, when it was trained as often"
    assert alone not in page_of(run).text
    change(run, "chosen", control="baseline-mean")
    change(run, "test", control=before)
    text = page_of(run).text
    assert f"{alone} and as long, with" in text and "The difference is beyond chance." in text
    assert "the rounds' control" not in text and "The control is the reader from before" in text
    change(run, "settled", longer=1.03)
    assert "1.0 times" not in page_of(run).text and "Practice paid," not in page_of(run).text
    change(run, "settled", longer=3.5)
    text = page_of(run).text
    assert (
        f"{alone}, with" in text
        and "learned for 3.5 times as long as the first readers" in text
        and "as often and as long" not in text
        and "what the labels alone give in as long was not tried here" in text
    )
    assert page_of(run).text.count("Practice paid, and learned 3.5 times as long") == 1
    change(run, "chosen", reader="baseline-mean", practised=False)
    assert "A control that trained on" not in page_of(run).text


def test_the_headline_tells_one_training_from_the_mean_of_several(run: Path) -> None:
    assert "one of them alone" not in page_of(run).text
    entry = Ledger(run / "ledger.jsonl")["test"]
    change(run, "test", alone={**entry["before"], "exact": 0.35})
    change(run, "chosen", reader="baseline-mean", practised=False)
    text = page_of(run).text
    assert "one of them alone reads 21 (35.0 %)" in text and "Nothing: the run keeps the reader from before" in text


def test_a_run_that_keeps_an_unpractised_reader_did_not_pay(run: Path) -> None:
    change(run, "chosen", reader="baseline", practised=False)
    page = page_of(run)
    assert "What learned all that was practised read fewer validation pictures, beyond chance." in page.text
    assert "Practice did not pay here" in page.text and "Nothing: the run keeps the reader from before" in page.text
    assert "the reader from before practice reads" in page.text and "kept: before practice" in page.text
    assert "learned anew" in page.text and "let the rate fall" not in page.text
    # in runs whose rate fell at the end another reader was chosen by what was held out
    change(run, "settled", reader=None)
    text = page_of(run).text
    assert "let the rate fall" in text and "beyond chance" not in text.split("Hardest pictures")[0]
    change(run, "chosen", reader="round-2/control")
    page = page_of(run)
    assert "Practice did not pay here" in page.text and "no made picture had a part in this" in page.text
    assert "a control that trained on with the real pictures alone reads" in page.text and "kept: control" in page.text
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))
    held = Ledger(run / "ledger.jsonl")["round 2"]["held_out"]
    pupil, control = (held[role]["exact"] for role in ("pupil", "control"))
    said = verdict(PracticeRun.open(run)).sentences[1]
    assert re.search(rf"pupils read .*\({100 * pupil:.1f} %\).* controls .*\({100 * control:.1f} %\)", said), said


def test_wrong_characters_and_lookalikes_stand_beside_the_hardest_picture(run: Path) -> None:
    hard = read_manifest(run / "round-1" / "mined" / "hard").samples[0]
    page = page_of(run)
    wrong = {TAKEN_FOR[c] for c in hard.text if c in TAKEN_FOR and c not in hard.meta["read"]} | {"·"}
    assert wrong & set("".join(page.marked))
    made = [s for s in read_manifest(run / "round-1" / "kept") if s.meta["source"] == hard.meta["name"]]
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert alts.count(f"{hard.text}, made by {VARYING}") >= min(len(made), 4)
    assert f"{hard.text}, read as {hard.meta['read']}" in alts
    refused = read_manifest(run / "round-1" / "even" / "made" / VARYING).samples[-3:]
    for sample in read_manifest(run / "round-1" / "mined" / "hard").samples[:12]:
        count = sum(s.meta["source"] == sample.meta["name"] for s in refused)
        assert not count or f"{count} more refused" in page.text or f"None was kept of {count}." in page.text
    assert any(alt.endswith("drawn by captcha") for alt in alts)
    assert any(alt.endswith("refused: too hard") for alt in alts) and "Too hard: its label is less likely" in page.text
    assert f"captcha: too hard, {REFUSED['detail']}" in page.text


def test_the_budget_the_confusions_and_the_kinds_of_error_are_those_of_the_run(run: Path) -> None:
    page = page_of(run)
    budget = {(row[0], row[1]): row[-1] for row in page.rows if row[1:2] in (["captcha"], [VARYING])}
    assert budget == {
        ("1", "captcha"): "60 %", ("1", VARYING): "40 %", ("2", "captcha"): "70 %", ("2", VARYING): "30 %",
    }  # fmt: skip
    readings = Ledger(run / "ledger.jsonl")["test"]["readings"]
    before, after = (confusions([(r["text"], r[role]) for r in readings]) for role in ("before", "after"))
    both = before + after
    worst = sorted(both, key=lambda pair: (-both[pair], pair))[:10]
    shown = [row for row in page.rows if len(row) == 4 and row[2].isdigit() and row[3].isdigit()]
    assert len(worst) == 10 and [row[2:] for row in shown] == [[str(before[p]), str(after[p])] for p in worst]
    assert [row[0] for row in shown] == [true or "(nothing)" for true, _ in worst]
    kinds = Ledger(run / "ledger.jsonl")["round 2 mine"]["kinds"]
    assert kinds and all(f"{kind} {n}" in page.text for kind, n in kinds.items())
    assert "made = 2.0" in page.text and ["commit", "abc1234"] in page.rows


def test_higher_marks_of_the_curve_have_read_more(run: Path) -> None:
    found = curve(PracticeRun.open(run))
    assert found is not None
    held = [Ledger(run / "ledger.jsonl")[f"round {n}"]["held_out"] for n in (1, 2)]
    reads = {float(own["exact"]) for both in held for own in both.values()}
    marks = {mark.y for mark in found.marks if "round" in mark.title}
    assert len(marks) == len(reads) > 1
    by_height = sorted((m for m in found.marks if "round" in m.title), key=lambda m: m.y)
    told = [float(re.search(r": ([\d.]+) %", m.title)[1]) for m in by_height]  # type: ignore[index]
    assert told == sorted(told, reverse=True), "what is higher has read more"
    assert all(m.low > m.y > m.high or m.low >= m.y >= m.high for m in found.marks)


def test_likely_label_errors_and_looks_are_shown_where_there_are_any(run: Path) -> None:
    page = Page(write_report(run).read_text())
    assert page.words.count("Labels that are likely wrong") == 1, "the last round tells of those before as well"
    assert "Labels that are likely wrong in round 2: 2" in page.words and f"read {SURELY}" in page.words
    facts = json.loads((run / "ledger.jsonl").read_text().splitlines()[2])
    assert len(facts["looks"]) == 2
    for n, misread in facts["looks"]:
        assert f"{n} pictures, {misread} misread" in page.words
    assert "recognizer label" in page.text
    change(run, "prepare", reviewable=False)
    assert "recognizer label" not in page_of(run).text and "once recognizer merge has" in page_of(run).text
    change(run, "round 1 mine", looks=[[facts["read"], facts["misread"]]], suspects=0)
    for number in (1, 2):
        shutil.rmtree(run / f"round-{number}/mined/suspects")
    change(run, "round 2 mine", looks=[[facts["read"], facts["misread"]]], suspects=0)
    words = Page(write_report(run).read_text()).words
    assert "likely wrong" not in words and "Looks in round" not in words


def test_a_run_that_kept_no_reasons_shows_no_refused_pictures(run: Path) -> None:
    for path in run.glob("round-*/even/refused.jsonl"):
        path.unlink()
    page = page_of(run)
    assert "Refused in round" not in page.text and not any("refused" in attrs["alt"] for attrs in page.all("img"))


def test_the_time_of_every_step_is_told(run: Path) -> None:
    text = page_of(run).text
    for name, step in (("baseline", 30), ("folds/fold-0", 20)):
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "settings.toml").write_text("batch = 16\n")
        (run / name / "metrics.jsonl").write_text(f'{{"step": 10}}\n{{"step": {step}}}\n')
    assert "2 trainings of readers were shown 800 pictures" in page_of(run).text
    assert "Choose the reader1.2 s" in text and "Read the test set2.4 s" in text and "3 min 21 s in all" in text


def test_what_a_trial_earned_stands_beside_what_its_method_made(run: Path) -> None:
    with (run / "ledger.jsonl").open("a") as file:
        found = {"captcha": {"nats": -0.0412, "error": 0.02}, VARYING: {"nats": 0.25, "error": 0.125}}
        file.write(json.dumps({"step": "round 1 trial", "earned": found, "weights": {}}) + "\n")
    text = page_of(run).text
    assert text.count("-0.041 ± 0.020") == 1 and text.count("+0.250 ± 0.125") == 1


def test_a_marked_reading_shows_wrong_and_lost_characters(run: Path) -> None:
    entry = Ledger(run / "ledger.jsonl")["test"]
    rows = [{**entry["readings"][0], "text": "AB12", "before": "A812", "after": "AB1"}]
    change(run, "test", readings=rows)
    source = write_report(run).read_text()
    assert '>A<mark class="wrong">8</mark>12</bdi>' in source
    assert '>AB1<mark class="wrong">·</mark></bdi>' in source
    assert "0 put right; 0 now wrong; 1 wrong before and after, otherwise." in Page(source).text


def test_hostile_text_is_shown_and_never_run(run: Path) -> None:
    entry = Ledger(run / "ledger.jsonl")["test"]
    rows = [
        {**r, "text": HOSTILE, "before": '"><img src=x onerror=alert(1)>', "after": HOSTILE} for r in entry["readings"]
    ]
    rows[0]["before"] = "\u202egnp\x07\ud800"
    change(run, "test", readings=json.loads(json.dumps(rows)))
    listed = run / "round-1" / "mined" / "hard" / "metadata.jsonl"
    samples = [json.loads(line) | {"text": HOSTILE} for line in listed.read_text().splitlines()]
    listed.write_text("".join(json.dumps(row) + "\n" for row in samples))
    page = page_of(run)
    assert not page.all("script") and all("onerror" not in attrs for attrs in page.all("img"))
    assert HOSTILE in page.text
    source = (run / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in source and "\u202e" not in source and "\\u202e" in source and "\\ud800" in source


@pytest.mark.parametrize("done", range(1, len(STEPS) + 1))
def test_a_run_at_any_stage_is_reported(run: Path, done: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    cut = b"".join(lines[:done]) + b'{"step": "half'
    (run / "ledger.jsonl").write_bytes(cut)
    page = page_of(run)
    print_summary(run)
    said = capsys.readouterr().out
    if done < len(STEPS):
        assert "Practice is not finished" in page.text and f"practice run --resume {run}" in page.text
        assert f"the run is at step {STEPS[done]}; go on with: practice run --resume {run}" in said
    else:
        assert "not finished" not in page.text and "--resume" not in said
    assert (run / "ledger.jsonl").read_bytes() == cut, "a report must not touch a ledger that is being written"


def test_status_says_how_long_it_may_take(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    begun = next(i for i, row in enumerate(rows) if row["step"] == "baseline")
    rows[begun]["ahead"] = [3000.0, 2000.0]
    (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[: begun + 1]))
    print_summary(run)
    assert "about 50 min 0 s of training to come, if every round pays" in capsys.readouterr().out


def test_a_run_from_before_a_fact_was_told_is_reported(run: Path) -> None:
    entries = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    old = [
        {k: v for k, v in e.items() if k not in ("control_validation", "leaks")} for e in entries if e["step"] != "test"
    ]
    controls = {"names": ["third"], "practised": 4, "rows": [], "against": [], "n": 4}
    old += [{"step": step, **controls} for step in ("controls trained", "controls")]
    (run / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
    (run / "settings.toml").write_text("seeds = 3\nfold_case = false\n" + (run / "settings.toml").read_text())
    assert "What practice added, by its controls" in page_of(run).text


def test_status_tells_whether_a_process_is_at_it_and_which_controls_lack(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text('controls = ["random", "third"]\n' + settings)
    with (run / "ledger.jsonl").open("a") as file:  # as a run leaves it that had one of them
        for step in ("controls trained", "controls"):
            entry = {
                "step": step,
                "names": ["third"],
                "practised": 4,
                "rows": [],
                "against": [],
                "n": 4,
                "pictures": {},
            }
            file.write(json.dumps(entry) + "\n")
    with locked(run):
        print_summary(run)
    assert "the run is at step controls trained; a process is at it" in capsys.readouterr().out
    (run / "controls/none/seed-0").mkdir(parents=True)
    (run / "controls/none/seed-0/metrics.jsonl").write_text('{"step": 20, "steps": 60}\n')
    print_summary(run)
    said = capsys.readouterr().out
    assert f"; go on with: practice run --resume {run}" in said
    assert "training controls/none/seed-0 at step 20 of 60" in said
    for step in ("controls trained", "controls"):
        change(run, step, failed=["random"])
    print_summary(run)
    assert "the run is finished" in capsys.readouterr().out


def test_the_table_of_controls_is_whole_in_a_narrow_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    difference = {"mean": 0.012, "low": -0.004, "high": 0.031, "p": 0.2}
    names = ["none", "random", "practised"]
    rows = [{"name": name, "by_seed": [0.5, 0.75], "interval": [0.41, 0.83],
             "against": {other: difference for other in names if other != name}} for name in names]  # fmt: skip
    controls = {"names": ["random"], "practised": 4, "rows": rows, "against": names, "n": 4, "pictures": {}}
    with (run / "ledger.jsonl").open("a") as file:
        for step in ("controls trained", "controls"):
            file.write(json.dumps({"step": step, **controls}) + "\n")
    monkeypatch.setenv("COLUMNS", "80")
    print_summary(run)
    said = capsys.readouterr().out
    for name in names:
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name] and "62.5 %" in line]
        assert line.count("+1.2 (-0.4 to +3.1)") == 2 and "41.0 to 83.0 %" in line
    assert "…" not in said


def test_a_run_that_was_cleared_and_whose_test_set_is_gone_is_reported(run: Path) -> None:
    for name in ("data", "round-1", "round-2"):
        shutil.rmtree(run / name)
    settings = (run / "settings.toml").read_text()
    gone = run / "nowhere"
    (run / "settings.toml").write_text(re.sub(r'test = ".*"', f'test = "{gone}"', settings))
    page = page_of(run)
    assert f"cannot be shown any more ({gone}: no such file or folder)" in page.text
    assert not page.all("img") and "holds no hard pictures any more" in page.text
    assert "put right" in page.text and page.marked


def test_a_test_picture_under_another_label_is_left_out(run: Path) -> None:
    entry = Ledger(run / "ledger.jsonl")["test"]
    change(run, "test", readings=[{**r, "text": "OTHER", "before": "X", "after": "OTHER"} for r in entry["readings"]])
    page = page_of(run)
    assert "have another label there, and are left out" in page.text and "60 put right" in page.text


def test_without_a_test_set_validation_speaks_and_says_so(run: Path) -> None:
    settings = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(re.sub(r'test = ".*"\n', "", settings))
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))
    page = page_of(run)
    assert "There is no test set" in page.text and "≤" in page.text
    assert "Practice reads more on validation, and no test set confirms it" in page.text
    for other, own in (("validation", 0.1), ("control_validation", 0.99)):  # less than before, less than the control
        change(run, "chosen", **{other: json.loads(lines[-2])[other] | {"exact": own}})
        assert "Practice shows no gain on validation, and no test set confirms it" in page_of(run).text
        change(run, "chosen", **{other: json.loads(lines[-2])[other]})


def test_what_is_no_run_or_did_nothing_yet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tell in (write_report, print_summary):
        with pytest.raises(UserError, match=r"no practice run: it has no settings\.toml"):
            tell(tmp_path / "nothing")
    (tmp_path / "settings.toml").write_text('data = ["x"]\n')
    for tell in (write_report, print_summary):
        with pytest.raises(UserError, match="another command's"):
            tell(tmp_path)
    (tmp_path / "settings.toml").write_text('data = ["x"]\nmethods = ["captcha"]\nrounds = 2\nfolds = 2\n')
    with pytest.raises(UserError, match="nothing to report yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    print_summary(tmp_path)
    assert "the run is at step prepare" in capsys.readouterr().out


def test_the_summary_prints_the_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(run)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ledger = Ledger(run / "ledger.jsonl")
    for role in ("before", "control", "after"):
        own = ledger["test"][role]
        low, high = own["exact_interval"]
        assert [
            role, f"{100 * own['exact']:.1f}", "%", f"{100 * low:.1f}", "to", f"{100 * high:.1f}", "%",
            f"{100 * own['exact_ignoring_case']:.1f}", "%", f"{own['character_error_rate']:.3f}", "60",
        ] in rows  # fmt: skip
    held = ledger["round 1"]["held_out"]
    pupil, control = (f"{100 * held[role]['exact']:.1f}" for role in ("pupil", "control"))
    assert ["1", pupil, "%", control, "%", "54", "of", "60", "earned", "something"] in rows


def test_the_report_needs_no_torch(run: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from pipelines.cli import app; app()"
    command = [sys.executable, "-c", code, "report", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report: {run}/report.html\n"


# --------------------------------------------------------------------------------------------------------- the ledger


def test_a_cut_off_last_line_is_dropped_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).record("prepare", train=3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": "baseline", "secon')
    ledger = Ledger(path)
    assert "prepare" in ledger and "baseline" not in ledger
    ledger.record("baseline", seconds=1)
    assert path.read_bytes() == whole + b'{"step": "baseline", "seconds": 1}\n'
    assert [entry["step"] for entry in Ledger(path)] == ["prepare", "baseline"]


@pytest.mark.parametrize("broken", [b'{"step": "ba', b"[1]", b'{"train": 3}', b"\xff"])
def test_a_broken_middle_line_is_a_users_error(run: Path, broken: bytes) -> None:
    path = run / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + broken + b"\n" + b"".join(lines[2:]))
    for read in (lambda: Ledger(path), lambda: write_report(run), lambda: print_summary(run)):
        with pytest.raises(UserError, match="line 2, is no ledger entry"):
            read()


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.ledger import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="being written by another process"), locked(tmp_path):
            pass
        other.communicate("")
    with locked(tmp_path):  # the other is gone: the run is free
        pass


def test_the_report_shows_trainings_as_they_learned(run: Path) -> None:
    assert learning(PracticeRun.open(run)) == (0, [])
    losses = {"baseline": [1.0, 0.01, 0.001], "round-1/settled": [0.1, float("nan"), 0.00000001]}
    for name, own in losses.items():
        rows = [
            {"step": 50 * k, "steps": 200, "loss": x, "validation_nll": 0.5 if k > 1 else None}
            for k, x in enumerate(own, 1)
        ]
        (run / name).mkdir(parents=True, exist_ok=True)
        (run / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "baseline/settings.toml").write_text("batch = 32\n")
    with (run / "ledger.jsonl").open("a") as ledger:
        own = PracticeRun.open(run).steps["settled"]
        ledger.write(json.dumps({**own, "reader": "round-1/settled-mean"}) + "\n")
    seen, (loss, nats) = learning(PracticeRun.open(run))
    assert seen == 200 * 32 and [label for _, label in loss.ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    places = {role: points for role, _, points in loss.lines}
    assert places["before"] == ((25.0, 0.0), (50.0, PANEL / 2), (75.0, 3 * PANEL / 4))
    assert places["after"] == ((25.0, PANEL / 4), (75.0, float(PANEL))), "what is no number is left out"
    assert [label for _, label in nats.ticks] == ["0.1", "1"]
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "practised: as many pictures, with the same seed" in page.text and "6,400" in page.text
    change(run, "settled", reader="round-1/settled-again-mean", longer=4.2)
    shutil.copytree(run / "round-1/settled", run / "round-1/settled-again")
    assert "practised: 4.2 times as many pictures, with the same seed" in page_of(run).text
    change(run, "settled", reader="round-1/settled-mean", longer=1.0)
    (run / "baseline/metrics.jsonl").unlink()  # someone has cleared it away, or settings are just being written
    (run / "round-1/settled/settings.toml").write_text("batch = 16\n")
    assert learning(PracticeRun.open(run))[0] == 200 * 16
    (run / "round-1/settled/settings.toml").unlink()
    assert learning(PracticeRun.open(run)) == (0, [])


def test_a_round_that_found_too_little_is_told_of_and_not_shown_as_practised(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    mined = [i for i, row in enumerate(rows) if row["step"].endswith(" mine")]
    last = rows[mined[-1]]
    number = int(last["step"].split()[1])
    rows[mined[-1]] = {**last, "kept": 3, "enough": False}
    rows = [row for row in rows if row["step"] != f"round {number}"]
    (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(run)
    assert number > 1 and "ended: 3 more are too few" in page.text
    assert [bool(re.search(rf"Round {n}: [\d,]+ of", page.text)) for n in (1, number)] == [True, False]
    print_summary(run)
    assert "made too little" in capsys.readouterr().out


def test_test_pictures_with_unknown_characters_are_told_of_and_what_they_would_cost() -> None:
    test = {"set_aside": 3, "after": {"exact": 0.9, "n": 18}}
    told = "3 test pictures could not be used by all readers, and count nowhere"
    assert told_aside(test) == f"{told}."
    more = "2 hold characters unknown to readers: with these as misread, after is 81.0 %."
    assert told_aside(test | {"unknown": 2}) == f"{told}; {more}"
