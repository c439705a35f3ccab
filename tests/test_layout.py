"""Where characters stand: against pictures whose layout is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from augment.layout import Aligner, borders
from augment.methods.render import Render, RenderSettings
from augment.synthesize import random_texts
from recognizer.charset import Charset
from recognizer.decode import alignment
from recognizer.errors import UserError
from recognizer.reader import Reader


def log(rows: list[list[float]]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


def test_the_alignment_is_the_most_probable_one() -> None:
    rng = np.random.default_rng(0)
    for ids, frames in (((1,), 3), ((1, 2), 4), ((1, 1), 5), ((2, 1, 2), 6)):
        p = rng.dirichlet(np.ones(3), frames).astype(np.float32)

        def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(c for t, c in enumerate(path) if c and (t == 0 or c != path[t - 1]))

        paths = [q for q in np.ndindex(*[3] * frames) if collapsed(q) == ids]
        best = max(paths, key=lambda q: np.prod(p[range(frames), q]))
        spans, t = [], 0
        while t < frames:
            end = t
            while end < frames and best[end] == best[t]:
                end += 1
            if best[t]:
                spans.append((t, end))
            t = end
        assert alignment(np.log(p), ids) == spans


def test_a_text_longer_than_its_frames_has_no_alignment() -> None:
    assert alignment(log([[0.2, 0.8], [0.2, 0.8]]), [1, 1]) is None  # a blank must part them
    assert alignment(log([[0.2, 0.8], [0.2, 0.8], [0.2, 0.8]]), [1, 1]) == [(0, 1), (2, 3)]
    assert alignment(log([[0.5, 0.5]]), []) == []


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("size", [(112, 32), (200, 60)])
def test_borders_are_found_within_two_pixels(size: tuple[int, int], trim: bool) -> None:
    texts = random_texts(Charset.named("letters+digits"), (4, 5, 6), 120, 5)
    drawn = Render(RenderSettings(difficulty=0.6)).draw(texts, range(700, 820), size)
    greys = (drawn.pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    reader = Reader()
    reader.frame = replace(reader.frame, trim=trim)
    found = Aligner(reader).find([Image.fromarray(g) for g in greys], texts)
    between, centred = [], []
    for layout, boxes in zip(found, drawn.boxes.numpy(), strict=True):
        assert layout is not None
        n = len(layout.text)
        assert len(layout.borders) == n + 1 and (np.diff(layout.borders) > 0).all()
        between.append(layout.borders[1:-1] - (boxes[1:n, 0] + boxes[: n - 1, 2]) / 2)
        centred.append(layout.centres - (boxes[:n, 0] + boxes[:n, 2]) / 2)
    to_32 = 32 / size[1]
    assert np.median(np.abs(np.concatenate(between))) * to_32 < 1.2
    assert np.median(np.abs(np.concatenate(centred))) * to_32 < 1.4
    assert abs(np.median(np.concatenate(centred))) * to_32 < 0.5, "the offset is not taken off"


def test_the_first_and_last_border_are_the_ends_of_the_ink() -> None:
    sheet = np.full((32, 100), 255, np.uint8)
    sheet[8:24, 20:30] = 0
    sheet[8:24, 40:60] = 0
    found = borders(Image.fromarray(sheet), np.array([25.0, 50.0]))
    assert np.allclose(found, [20, 35, 60], atol=5) and 30 <= found[1] <= 40
    assert abs(found[0] - 20) <= 1 and abs(found[2] - 60) <= 1


def test_texts_that_do_not_fit_have_no_layout() -> None:
    blank = Image.new("RGB", (20, 32), "white")
    assert Aligner(Reader()).find([blank] * 3, ["水", "", "x" * 100]) == [None] * 3


def test_a_recurrent_head_is_refused() -> None:
    reader = Reader()
    reader.about = {**reader.about, "head": "lstm"}
    with pytest.raises(UserError, match="lstm head does not say where"):
        Aligner(reader)
