"""Labelling: the desk, its page over HTTP, and a hundred pictures by the keys of a browser."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Trained, draw_folder, random_labels, recognizer, refusal
from fastapi.testclient import TestClient
from PIL import Image

from recognizer.data.audit import Doubt, write_doubts
from recognizer.data.label import JOURNAL, Desk, Taken, desk_of, how_to_review, merge_answers, read_doubts, standing
from recognizer.data.label_page import make_app
from recognizer.errors import UserError
from recognizer.journal import Journal
from recognizer.reader import Reader
from recognizer.readings import Reading
from recognizer.samples import read_manifest, write_folder, write_shards

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures: two with a label, one that cannot be opened, and three without a label."""
    data = draw_folder(tmp_path / "six", ["01", "12", "23", "30", "02", "13"], 0)
    lines = (data / "metadata.jsonl").read_text().splitlines()
    first = json.dumps({**json.loads(lines[0]), "from": "a camera"})
    (data / "metadata.jsonl").write_text(f'{first}\n{lines[1]}\nno JSON, and not ours\n{{"file_name": "gone.png"}}\n')
    (data / "005.png").write_bytes(b"no picture")
    return data


def guess(desk: Desk, sure: dict[str, float]) -> None:
    for picture in desk.pictures:
        if picture.name in sure:
            picture.guess = Reading("01", sure[picture.name], (("0", 0.9), ("1", 0.5)))


def names(desk: Desk, tab: str = "a", count: int = 9) -> list[str]:
    return [own["name"] for own in desk.next(tab, count)]


def answers(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's journal, but for those that say that the manifest was written."""
    rows = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    return [row for row in rows if row["status"] != "written"]


def manifest(folder: Path) -> list[str]:
    return (folder / "metadata.jsonl").read_text().splitlines()


# ------------------------------------------------------------------------------------------------------------ the desk


def test_the_least_sure_comes_first_and_what_was_skipped_last(folder: Path) -> None:
    with desk_of([folder]) as desk:
        guess(desk, {"002.png": 0.8, "003.png": 0.2, "004.png": 0.5})
        assert names(desk) == ["003.png", "004.png", "002.png", "005.png"], "what the reader has not read is last"
        first = desk.next("a", 1)[0]
        assert (first["guess"], first["confidence"], first["label"]) == ("01", 0.2, None)
        desk.answer("a", first["id"], first["version"], None, skip=True)
        assert names(desk) == ["004.png", "002.png", "005.png", "003.png"]
        assert not (folder / JOURNAL).read_text(), "a skip is no answer"


def test_answers_are_on_disk_at_once_and_the_manifest_keeps_what_it_held(folder: Path) -> None:
    before = manifest(folder)
    with desk_of([folder], labeller="ada") as desk:
        by_name = {own["name"]: own for own in desk.next("a", 9)}
        for name, text in (("003.png", "30"), ("004.png", None)):
            desk.answer("a", by_name[name]["id"], 0, text, 1.5)
        assert [(r["file_name"], r["status"], r["text"], r["by"]) for r in answers(folder)] == [
            ("003.png", "labelled", "30", "ada"), ("004.png", "unreadable", None, "ada"),
        ]  # fmt: skip
        state = desk.state()
        assert (state["answered"], state["total"]) == (4, 6) and state["a_minute"] == pytest.approx(24)
    assert manifest(folder) == [*before, '{"file_name": "003.png", "text": "30"}']
    with desk_of([folder]) as desk:
        assert names(desk) == ["002.png", "005.png"], "what was answered is not asked again"


def test_what_a_kill_cut_off_is_dropped_and_the_manifest_made_up_for(folder: Path) -> None:
    row = {"file_name": "002.png", "status": "labelled", "text": "23"}
    (folder / JOURNAL).write_text(json.dumps(row) + '\n{"file_name": "003.png", "sta')
    with desk_of([folder]) as desk:
        assert names(desk) == ["003.png", "004.png", "005.png"]
        desk.answer("a", desk.next("a", 1)[0]["id"], 0, "30")
    assert [row["file_name"] for row in answers(folder)] == ["002.png", "003.png"]
    assert manifest(folder)[-2:] == ['{"file_name": "002.png", "text": "23"}', '{"file_name": "003.png", "text": "30"}']


def test_undo_takes_a_tabs_own_answers_back_in_turn(folder: Path) -> None:
    with desk_of([folder]) as desk:
        guess(desk, {"002.png": 0.1, "003.png": 0.2, "004.png": 0.3})
        for text, skip in (("23", False), (None, True), (None, False)):
            own = desk.next("a", 1)[0]
            desk.answer("a", own["id"], own["version"], text, skip=skip)
        assert desk.undo("b") is None
        assert [(desk.undo("a") or {}).get("name") for _ in range(4)] == ["004.png", "003.png", "002.png", None]
        assert names(desk)[:3] == ["002.png", "003.png", "004.png"]
        desk.answer("a", 0, desk.next("a", 1)[0]["version"], "32")
    assert manifest(folder)[-1] == '{"file_name": "002.png", "text": "32"}'
    assert read_manifest(folder).texts == ["01", "12", "32"]


def test_two_tabs_get_different_pictures_and_do_not_overwrite_each_other(folder: Path) -> None:
    with desk_of([folder]) as desk:
        one, two = desk.next("a", 2), desk.next("b", 2)
        assert not {own["id"] for own in one} & {own["id"] for own in two}
        assert desk.next("a", 2) == one, "a tab keeps what it was shown"
        desk.answer("b", one[0]["id"], one[0]["version"], "23")  # as a tab does whose lease has run out
        with pytest.raises(Taken, match=r"^23$"):
            desk.answer("a", one[0]["id"], one[0]["version"], "99")
        for picture in desk.pictures:
            picture.until = 0.0  # the other tab was closed a while ago
        assert set(names(desk, "b")) == {"003.png", "004.png", "005.png"}
    assert manifest(folder)[-1] == '{"file_name": "002.png", "text": "23"}'


def test_many_threads_lose_no_answer(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01"] * 60, 0)
    (data / "metadata.jsonl").unlink()

    def work(tab: str) -> None:
        while own := desk.next(tab, 2):
            desk.answer(tab, own[0]["id"], own[0]["version"], own[0]["name"][:3])

    with desk_of([data]) as desk:
        threads = [threading.Thread(target=work, args=(str(k),)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert desk.state()["answered"] == 60
    assert sorted((s.name, s.text) for s in read_manifest(data)) == [(f"{k:03d}.png", f"{k:03d}") for k in range(60)]


def test_a_review_shows_what_is_doubted_with_its_label(folder: Path) -> None:
    rows = [
        {"file_name": "001.png", "text": "12", "suggested": "17", "reasons": ["2 of 2 readers see '17'"]},
        {"file_name": "000.png", "text": "01", "suggested": "O1", "reasons": []},
    ]
    (folder / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with desk_of([folder], read_doubts(folder / "audit.jsonl")) as desk:
        shown = desk.next("a", 9)
        assert [(own["name"], own["label"], own["suggested"]) for own in shown] == [
            ("001.png", "12", "17"), ("000.png", "01", "O1"),
        ]  # fmt: skip
        desk.answer("a", shown[0]["id"], 0, "17")
    assert manifest(folder)[1] == '{"file_name": "001.png", "text": "17"}' and '"a camera"' in manifest(folder)[0]
    with desk_of([folder], rows) as desk:
        assert names(desk) == ["000.png"], "what was reviewed is not asked again"


def test_labels_of_shards_are_reviewed_in_the_copy_that_lists_them(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01", "12", "23"], 0)
    write_shards(read_manifest(data), tmp_path / "shards")
    sample = read_manifest(tmp_path / "shards").samples[1]
    write_doubts([Doubt(sample, 5.0, "17", 0.9, ("read surely",))], tmp_path / "audit.jsonl")
    write_folder(read_manifest(tmp_path / "shards"), tmp_path / "merged")
    with desk_of([tmp_path / "merged"], read_doubts(tmp_path / "audit.jsonl")) as desk:
        assert names(desk) == [f"{sample.name}.png"]


def test_a_review_hides_no_label_that_stands_in_a_file_name(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01", "12", "23"], 0)
    (data / "metadata.jsonl").unlink()
    for k, text in enumerate(("01", "12", "23")):
        (data / f"{k:03d}.png").rename(data / f"{text}_{k}.png")
    doubts = tmp_path / "suspects.jsonl"
    told = how_to_review([data, tmp_path / "a b"], "{text}_{id}.png", doubts)
    assert told == (
        f"look at them with: recognizer merge {data} '{tmp_path}/a b' --label-pattern '{{text}}_{{id}}.png' "
        f"--out FOLDER, and then recognizer label FOLDER --review {doubts}"
    )
    with pytest.raises(UserError, match=r"no metadata\.jsonl or metadata\.csv.*would hide"):
        desk_of([data], [{"file_name": "12_1.png", "text": "12"}]).__enter__()
    assert len(read_manifest(data, "{text}_{id}.png")) == 3 and not (data / "metadata.jsonl").exists()
    write_folder(read_manifest(data, "{text}_{id}.png").samples, tmp_path / "merged")
    assert how_to_review([tmp_path / "merged"], None, doubts).endswith(f"merged --review {doubts}")
    with desk_of([tmp_path / "merged"], [{"file_name": "12_1.png", "text": "12"}]) as desk:
        assert names(desk) == ["12_1.png"]
    # rows name the files from before, by their paths: those of another label are none of these
    rows = [{"file_name": name, "text": "12", "path": str(data / name)} for name in ("12_1.png", "23_2.png")]
    with desk_of([tmp_path / "merged"], rows) as desk:
        assert names(desk) == ["12_1.png"]


def test_a_csv_manifest_is_carried_over_and_a_picture_with_two_texts_is_asked_again(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01", "12", "23"], 0)
    (data / "metadata.jsonl").unlink()
    (data / "metadata.csv").write_text("file_name,text\n000.png,0,1\n")
    with pytest.raises(UserError, match=r"metadata.csv, line 2: more cells than the header"), desk_of([data]):
        pass
    (data / "metadata.csv").write_text("file_name,text,lot\n000.png,01,7\n001.png,12,7\n001.png,21,8\n")
    with desk_of([data]) as desk:
        assert names(desk) == ["001.png", "002.png"]
        desk.answer("a", desk.next("a", 1)[0]["id"], 0, "0012")
    assert manifest(data) == [
        '{"file_name": "000.png", "text": "01", "lot": "7"}', '{"file_name": "001.png", "text": "0012", "lot": "7"}',
    ]  # fmt: skip


def test_what_others_write_into_the_manifest_stays(folder: Path) -> None:
    def edit(old: str, new: str) -> None:
        file = folder / "metadata.jsonl"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    with desk_of([folder]) as desk:
        desk.answer("a", 0, 0, "teh")
        desk.write_manifests()
        edit('"text": "12"', '"text": "21"')  # while the page is open
        desk.answer("a", 1, 0, "30")
    assert '"text": "21"' in manifest(folder)[1] and '"text": "30"' in manifest(folder)[-1]
    edit("teh", "the")
    with desk_of([folder]) as desk:
        assert names(desk) == ["004.png", "005.png"]
    assert manifest(folder)[-2] == '{"file_name": "002.png", "text": "the"}', "a correction by hand is not undone"


def test_manifests_are_read_as_they_are_elsewhere(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01", "12", "23", "30", "13"], 0)
    odd = [
        '{"file_name": "./000.png", "text": "01"}', '{"file_name": "001.png", "text": "12", "note": "a\u2028b"}',
        '{"file_name": "002.png", "text": 23}', '{"file_name": "003.png", "text": "30", "caption": "\\ud83d"}',
    ]  # fmt: skip
    (data / "metadata.jsonl").write_text("\ufeff" + "".join(line + "\n" for line in odd))
    before = read_manifest(data)
    with desk_of([data]) as desk:
        assert names(desk) == ["002.png", "004.png"], "a number is no label"
        for own, text in zip(desk.next("a", 2), ("23", "13"), strict=True):
            desk.answer("a", own["id"], 0, text)
    assert {s.name: s.text for s in read_manifest(data)} == {s.name: s.text for s in before} | {
        "002.png": "23", "004.png": "13"
    }  # fmt: skip
    rows = [{"file_name": "003.png", "text": "30", "suggested": "31", "reasons": []}]
    with desk_of([data], rows) as desk:
        desk.answer("a", 0, 0, "31")
    assert '{"file_name": "003.png", "text": "31", "caption": "\\ud83d"}' in manifest(data)


def test_a_line_that_was_taken_out_comes_back_whole(folder: Path) -> None:
    rows = [{"file_name": "000.png", "text": "01"}]
    before = manifest(folder)
    with desk_of([folder], rows) as desk:
        desk.answer("a", 0, 0, None)
        desk.write_manifests()
        assert "000.png" not in "".join(manifest(folder))
        desk.undo("a")
    assert sorted(manifest(folder)) == sorted(before)
    with desk_of([folder], rows) as desk:
        desk.answer("a", 0, 0, None)
    with desk_of([folder]) as desk:
        assert "000.png" not in names(desk), "nobody can read it, and it is not asked again"


def test_undoing_a_review_leaves_the_answer_that_was_reviewed(folder: Path) -> None:
    with desk_of([folder]) as desk:
        desk.answer("a", 0, 0, "23")
    with desk_of([folder], [{"file_name": "002.png", "text": "23"}]) as desk:
        desk.answer("a", 0, 0, "99")
        desk.undo("a")
    assert manifest(folder)[-1] == '{"file_name": "002.png", "text": "23"}'
    assert standing(answers(folder))["002.png"]["text"] == "23"


def test_a_settled_review_is_asked_again_where_its_label_is_another_one(folder: Path) -> None:
    rows = [{"file_name": "000.png", "text": "01"}]
    with desk_of([folder], rows) as desk:
        desk.answer("a", 0, 0, "0I")
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("0I", "WRONG"))
    with desk_of([folder], [{"file_name": "000.png", "text": "WRONG"}]) as desk:
        assert [own["label"] for own in desk.next("a")] == ["WRONG"]


def test_doubts_of_several_folders_are_told_apart_by_their_paths(folder: Path, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other", ["11"], 0)
    rows = [{"file_name": "1/000.png", "path": str((other / "000.png").resolve()), "text": "11", "suggested": "17"}]
    with desk_of([folder, other], rows) as desk:
        assert [(own["name"], own["label"]) for own in desk.next("a")] == [("000.png", "11")]
        assert desk.path_of(0) == other / "000.png"


def test_a_journal_goes_on_when_a_full_disk_has_room_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "labels.jsonl", "broken")
    journal.append({"n": 1})
    before, whole = resource.getrlimit(resource.RLIMIT_FSIZE), (tmp_path / "labels.jsonl").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, before[1]))  # as if only five bytes were left
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append({"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "labels.jsonl").read_bytes() == whole
    journal.append({"n": 3})
    assert [row["n"] for row in Journal(tmp_path / "labels.jsonl", "broken").rows] == [1, 3]


def test_a_last_line_that_lacks_its_end_alone_is_kept_and_half_a_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    for last, kept in ((b'{"n": 2}', [1, 2, 3]), (b'{"n": 2', [1, 3]), (b"[2]", [1, 3])):
        path.write_bytes(b'{"n": 1}\n' + last)
        Journal(path, "broken").append({"n": 3})
        assert [row["n"] for row in Journal(path, "broken").rows] == kept
        assert path.read_bytes().endswith(b'}\n{"n": 3}\n')
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(UserError, match="line 1, broken"):
        Journal(path, "broken")


def test_a_folder_is_asked_for_once_whatever_it_is_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with desk_of([folder, Path(folder.name)]) as desk:
        assert len(desk.folders) == 1
    (folder / "below").mkdir()
    with pytest.raises(UserError, match=r"below lies in .*: name one of them"), desk_of([folder, folder / "below"]):
        pass


def test_a_manifest_that_is_a_link_stays_one(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.jsonl").rename(tmp_path / "kept.jsonl")
    (folder / "metadata.jsonl").symlink_to(tmp_path / "kept.jsonl")
    with desk_of([folder]) as desk:
        (own,) = desk.next("a", 1)
        desk.answer("a", own["id"], 0, "77")
    assert (folder / "metadata.jsonl").is_symlink() and '"text": "77"' in (tmp_path / "kept.jsonl").read_text()


def test_a_review_that_no_audit_wrote_and_an_answer_that_is_none_are_one_line(folder: Path, tmp_path: Path) -> None:
    for line in ('{"file_name": "a", "text": "b", "reasons": 5}', "[" * 100_000, "7"):
        (tmp_path / "audit.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match="is no list that recognizer audit-labels wrote"):
            read_doubts(tmp_path / "audit.jsonl")
    with desk_of([folder]) as desk:
        client = TestClient(make_app(desk, "secret"), base_url="http://127.0.0.1")
        broken = client.post(
            "/secret/next", content=b'{"tab": ["\\ud800"]}', headers={"content-type": "application/json"}
        )
        assert (broken.status_code, broken.json()) == (422, {"detail": "that is no answer"})


def test_a_journal_that_something_else_changes_is_left_alone(folder: Path) -> None:
    with pytest.raises(UserError, match=r"was changed by something else"), desk_of([folder]) as desk:
        desk.answer("a", 0, 0, "23")
        (folder / JOURNAL).unlink()
        (folder / JOURNAL).write_text("ours\n")
        desk.answer("a", 1, 0, "30")
    assert (folder / JOURNAL).read_text() == "ours\n"


def test_links_to_elsewhere_are_counted_and_not_shown(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(draw_folder(tmp_path / "other", ["11"], 0) / "000.png")
    with desk_of([folder]) as desk:
        assert "link.png" not in names(desk) and desk.outside == 1


def test_a_name_that_is_no_utf8_is_labelled_as_any_other(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", ["01"], 0)
    (data / "metadata.jsonl").unlink()
    (data / "000.png").rename(os.fsdecode(os.fsencode(data) + b"/caf\xe9.png"))
    with desk_of([data]) as desk:
        client = TestClient(make_app(desk, "secret"), base_url="http://127.0.0.1")
        (own,) = client.post("/secret/next", json={"tab": "a"}).json()["pictures"]
        assert own["name"] == "caf\udce9.png" and client.get("/secret/picture/0").status_code == 200
        desk.answer("a", 0, 0, "01")
    assert [(s.name, s.text) for s in read_manifest(data)] == [("caf\udce9.png", "01")]


@pytest.mark.parametrize("text", ["", " 01", "0\n1", "0\u200b1", "0\u20281", "0\ud83d1", "\u202a01\u202c", "0\u00ad1"])
def test_a_label_that_is_none_is_refused(folder: Path, text: str) -> None:
    with desk_of([folder]) as desk, pytest.raises(UserError, match="one line of text"):
        desk.answer("a", 0, 0, text)


def test_what_cannot_be_labelled_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"), desk_of([tmp_path / "none"]):
        pass
    with desk_of([folder]), pytest.raises(UserError, match="being written by another process"), desk_of([folder]):
        pass
    (folder / JOURNAL).write_text('{"file_name": "000.png", "status": "lost"}\n')
    with pytest.raises(UserError, match=r"labels.jsonl, line 1, is no answer: mend the line"), desk_of([folder]):
        pass
    (folder / JOURNAL).unlink()
    data = draw_folder(tmp_path / "whole", ["01"], 0)
    assert "every picture is answered; to look for wrong" in refusal(recognizer("label", data))
    (tmp_path / "rows.jsonl").write_text('{"file_name": "x.png", "text": "y"}\n')
    assert "none of the 1 pictures of" in refusal(recognizer("label", data, "--review", tmp_path / "rows.jsonl"))
    (tmp_path / "empty").mkdir()
    assert "no picture is there" in refusal(recognizer("label", tmp_path / "empty"))


# ------------------------------------------------------------------------------------------------------ several people


def test_labellers_are_merged_and_their_disagreements_can_be_settled(folder: Path, tmp_path: Path) -> None:
    said = {"ada": {"002.png": "23", "003.png": "30", "004.png": None}, "bo": {"002.png": "23", "003.png": "3O"}}
    journals = []
    for by, own in said.items():
        copy = shutil.copytree(folder, tmp_path / by)
        with desk_of([copy], labeller=by) as desk:
            for picture in desk.next("a", 9):
                if picture["name"] in own:
                    desk.answer("a", picture["id"], 0, "typo")
                    desk.undo("a")
                    desk.answer("a", picture["id"], 2, own[picture["name"]])
        journals.append(copy / JOURNAL)
    merged = merge_answers(journals)
    assert (merged.agreed, merged.unreadable) == ({"002.png": "23"}, ("004.png",))
    ended = recognizer("merge-labels", *journals, "--out", tmp_path / "merged")
    assert ended.status == 0 and "1 pictures have one label" in ended.out and "1 are disagreed on:" in ended.out
    assert re.search(r"003.png  ada: 30  bo: 3O", ended.out), "by their names"
    assert [s.text for s in read_manifest(tmp_path / "merged")] == ["23"], "with its picture: ready to train on"
    assert (tmp_path / "merged/metadata.jsonl").read_text() == '{"file_name": "002.png", "text": "23"}\n'
    with desk_of([tmp_path / "merged"], read_doubts(tmp_path / "merged/disagreements.jsonl")) as desk:
        (own,) = desk.next("a", 9)
        assert (own["name"], own["suggested"]) == ("003.png", "3O")
    assert "exists: name a new folder" in refusal(recognizer("merge-labels", *journals, "--out", tmp_path / "merged"))
    assert "two labellers or more" in refusal(recognizer("merge-labels", journals[0], "--out", tmp_path / "one"))


@pytest.mark.parametrize("name", ["../secret.txt", "a/../../secret.txt", "/secret.txt"])
def test_an_answer_that_leads_out_of_its_folder_is_not_merged(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("precious")
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "secret.txt").write_text("theirs")
    journals = []
    for by, own in (("ada", name), ("bo", "1.png")):
        (tmp_path / by).mkdir()
        journals.append(tmp_path / by / JOURNAL)
        journals[-1].write_text(json.dumps({"file_name": own, "status": "labelled", "text": "X", "by": by}) + "\n")
    ended = recognizer("merge-labels", *journals, "--out", tmp_path / "into" / "out")
    assert "leads out of its folder: take the line out" in refusal(ended)
    assert (tmp_path / "into" / "secret.txt").read_text() == "theirs"
    assert not (tmp_path / "into" / "out").exists()


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_is_for_those_who_know_its_address_on_this_machine(folder: Path) -> None:
    with desk_of([folder]) as desk:
        client = TestClient(make_app(desk, "secret"), base_url="http://127.0.0.1")
        page = client.get("/secret/")
        assert page.status_code == 200 and "What it shows" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path in (
            "/",
            "/Secret/",
            "/secret/page/label.py",
            "/secret/page/..%2f..%2flabel.py",
            "/docs",
            "/secret/picture/99",
        ):
            assert client.get(path).status_code in (400, 404), path
        assert client.get("/secret/", headers={"Host": "elsewhere.example"}).status_code == 400
        for name, kind in (("label.css", "text/css"), ("label.js", "text/javascript")):
            assert client.get(f"/secret/page/{name}").headers["content-type"].startswith(kind)
        outside = re.findall(r"(?:src|href)=\"(?!page/|data:)[^\"]*", page.text)
        assert not outside and "http" not in client.get("/secret/page/label.js").text, (
            "the page asks nothing of elsewhere"
        )
        assert (
            client.post("/secret/answer", json={"tab": "a", "id": 0, "version": 0, "text": "x" * 201}).status_code
            == 422
        )


def test_a_tab_labels_over_http(folder: Path) -> None:
    with desk_of([folder]) as desk:
        client = TestClient(make_app(desk, "secret"), base_url="http://127.0.0.1")
        own = client.post("/secret/next", json={"tab": "a"}).json()["pictures"][0]
        png = client.get(f"/secret/picture/{own['id']}")
        assert png.headers["content-type"] == "image/png" and png.content.startswith(b"\x89PNG")
        given = {"tab": "a", "id": own["id"], "version": own["version"], "text": "23", "seconds": 2.0}
        assert client.post("/secret/answer", json=given).json()["state"]["answered"] == 3
        assert client.post("/secret/answer", json={**given, "tab": "b", "text": "32"}).status_code == 409
        refused = client.post("/secret/answer", json={**given, "id": 77})
        assert (refused.status_code, refused.json()) == (400, {"detail": "there is no picture 77"})
        broken = next(i for i, picture in enumerate(desk.pictures) if picture.name == "005.png")
        assert client.get(f"/secret/picture/{broken}").status_code == 410
        assert "005.png" not in names(desk, "c"), "and it is not shown"
        assert client.post("/secret/undo", json={"tab": "a"}).json()["picture"]["name"] == own["name"]
        assert client.post("/secret/undo", json={"tab": "a"}).json()["picture"] is None


def test_what_cannot_be_opened_is_counted_and_not_shown(folder: Path) -> None:
    with desk_of([folder]) as desk:
        desk.read(Reader())
        assert names(desk).count("005.png") == 0 and desk.state()["broken"] == 1 and desk.state()["unread"] == 0
        assert all(own["characters"] for own in desk.next("a", 9) if own["guess"])


@contextmanager
def labelling(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`recognizer label` in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "recognizer.cli", "label", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)
        assert found, process.communicate()
        try:
            yield process, found[0]
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_hundred_pictures_by_the_keys_of_a_browser(trained: Trained, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    labels = random_labels(100, 3)
    data = draw_folder(tmp_path / "data", labels, 3)
    (data / "metadata.jsonl").unlink()
    truth = {f"{k:03d}.png": text for k, text in enumerate(labels)}
    errors: list[str] = []
    corrected = 0
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))

        def open_page(url: str) -> None:
            page.goto(url)
            page.wait_for_selector("#work:not([hidden])")

        def one() -> None:
            nonlocal corrected
            name = page.inner_text("#name")
            if page.input_value("#text") != truth[name]:
                corrected += 1
                page.keyboard.press("Control+a")
                page.keyboard.type(truth[name])
            page.keyboard.press("Enter")
            page.wait_for_function("name => document.getElementById('name').textContent !== name || "
                                   "document.getElementById('work').hidden", arg=name)  # fmt: skip

        with labelling(data, "--model", trained.run) as (process, url):
            open_page(url)
            for _ in range(40):
                one()
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(answers(data)) == 40, "each answer was saved at once"
        with labelling(data, "--model", trained.run) as (process, url):
            open_page(url)
            held = page.inner_text("#state")
            page.evaluate("""() => { for (let k = 0; k < 5; k++) document.getElementById("text").dispatchEvent(
                new KeyboardEvent("keydown", {key: "Enter", repeat: true, bubbles: true, cancelable: true})) }""")
            assert page.inner_text("#state") == held, "a key that is held answers nothing"
            wrong = page.inner_text("#name")
            page.keyboard.type("9")
            page.keyboard.press("Enter")
            page.wait_for_function("name => document.getElementById('name').textContent !== name", arg=wrong)
            page.keyboard.press("Alt+z")
            page.wait_for_function("name => document.getElementById('name').textContent === name", arg=wrong)
            assert page.input_value("#text").endswith("9"), "what was typed is there again"
            page.keyboard.press("Escape")
            page.wait_for_function("name => document.getElementById('name').textContent !== name", arg=wrong)
            for _ in range(60):
                one()
            page.wait_for_selector("#done:not([hidden])")
            assert page.inner_text("#end") == "All pictures are answered"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            assert (process.returncode, err) == (0, "") and "100 of 100 pictures are answered" in out
        browser.close()
    assert not errors
    assert {s.name: s.text for s in read_manifest(data)} == truth
    assert corrected < 60, "the reader filled in what it saw"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_no_picture_stands_beside_the_guess_of_the_next(folder: Path) -> None:
    from playwright.sync_api import Route, sync_playwright

    held: list[Route] = []
    with labelling(folder) as (_, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.route("**/picture/*", lambda route: held.append(route))
        page.goto(url)
        page.wait_for_selector("#work:not([hidden])")
        seen = "() => getComputedStyle(document.getElementById('picture')).visibility"
        assert page.evaluate(seen) == "hidden", "its picture is not there yet"
        while page.evaluate(seen) == "hidden":
            while held:
                held.pop().continue_()
            page.wait_for_timeout(50)
        first = page.inner_text("#name")
        page.unroute("**/picture/*")
        page.keyboard.type("1")
        page.keyboard.press("Enter")
        page.wait_for_function("name => document.getElementById('name').textContent !== name", arg=first)
        page.wait_for_function(f"() => ({seen})() === 'visible'")
        browser.close()


def test_a_stopped_page_has_written_its_manifest(folder: Path) -> None:
    with labelling(folder) as (process, url), httpx.Client(base_url=url) as client:
        shown = client.post("next", json={"tab": "a", "count": 3}).json()["pictures"]
        for own in shown:
            answer = {"tab": "a", "id": own["id"], "version": own["version"], "text": "seen", "seconds": 1.0}
            assert client.post("answer", json=answer).status_code == 200
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "") and "pictures are answered" in out
    assert sum('"seen"' in line for line in manifest(folder)) == len(shown) > 0


def test_the_page_stops_in_one_line_where_its_port_is_taken(folder: Path) -> None:
    with labelling(folder) as (_, url):
        port = re.search(r":(\d+)/", url)
        assert port is not None
        other = draw_folder(folder / "more", ["01"], 0)
        (other / "metadata.jsonl").unlink()
        assert f"port {port[1]} of 127.0.0.1" in refusal(recognizer("label", other, "--port", port[1]))
        time.sleep(0.1)
        assert "being written by another process" in refusal(recognizer("label", folder))


def test_large_pictures_are_shown_smaller(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("L", (4000, 100), 255).save(tmp_path / "data" / "wide.png")
    with desk_of([tmp_path / "data"]) as desk:
        client = TestClient(make_app(desk, "secret"), base_url="http://127.0.0.1")
        (tmp_path / "shown.png").write_bytes(client.get("/secret/picture/0").content)
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.size == (1600, 40)
