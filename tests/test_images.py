"""Pictures that nobody vouches for, and the size that a reader takes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from recognizer.images import (
    MAX_PIXELS,
    UNUSUAL,
    USUAL,
    WIDTH_STEP,
    Frame,
    PictureError,
    grey_of,
    normalise,
    open_picture,
    text_parts,
    within_frame,
)  # fmt: skip


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(picture: Image.Image) -> list[Any]:
    """Row by row: a number each where the picture is grey, else a tuple."""
    values = np.asarray(picture)
    return values.ravel().tolist() if values.ndim == 2 else [tuple(p) for p in values.reshape(-1, 3).tolist()]


def noise(width: int = 40, height: int = 20, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


# ------------------------------------------------------------------------------------------------- every kind of pixel


def test_palette_and_its_transparent_entry() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255, 0, 128, 0])
    picture.putdata([0, 1, 2])
    assert pixels(open_picture(encoded(picture))) == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
    through = open_picture(encoded(picture, transparency=1))
    assert pixels(through) == [(255, 0, 0), (255, 255, 255), (0, 128, 0)]


def test_alpha_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (200, 0, 0, 128)])
    clear, solid, half = pixels(open_picture(encoded(rgba)))
    assert (clear, solid) == ((255, 255, 255), (0, 0, 0))
    assert half == pytest.approx((227, 127, 127), abs=2)
    grey = Image.new("LA", (2, 1))
    grey.putdata([(0, 0), (90, 255)])
    assert pixels(open_picture(encoded(grey), "L")) == [255, 90]
    assert pixels(open_picture(encoded(rgba, "WEBP", lossless=True), "L"))[:2] == [255, 0]


def test_transparent_colour_without_an_alpha_channel_is_white() -> None:
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 90])
    assert pixels(open_picture(encoded(grey, transparency=7), "L")) == [255, 90]
    rgb = Image.new("RGB", (2, 1))
    rgb.putdata([(1, 2, 3), (9, 9, 9)])
    assert pixels(open_picture(encoded(rgb, transparency=(1, 2, 3)))) == [(255,) * 3, (9, 9, 9)]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_greys_are_scaled_and_not_clipped(form: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), form)
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    assert pixels(open_picture(data, "L")) == [0, 1, 128, 255]
    assert open_picture(data).getpixel((2, 0)) == (128, 128, 128)


def test_16_bit_transparent_grey_is_white_and_the_others_stay() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    opened = open_picture(encoded(Image.fromarray(values), transparency=257), "L")
    assert pixels(opened) == [0, 255, 128, 255]


def test_floating_point_greys() -> None:
    for values, expected in (([-1, np.nan, 0, 3], [0, 0, 63, 255]), ([77, 0], [77, 0]), ([np.nan], [0]),
                             ([0, 0.5, 1], [0, 127, 255])):  # fmt: skip
        data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
        assert pixels(open_picture(data, "L")) == expected


@pytest.mark.parametrize("bits", [10, 12])
def test_greys_of_fewer_bits_in_16_fill_their_range(bits: int) -> None:
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 2]], np.uint16)
    for form in ("PNG", "TIFF"):
        assert pixels(open_picture(encoded(Image.fromarray(values), form), "L")) == [0, 127, 254]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_is_turned_as_viewers_turn_it(form: str) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("black", (0, 0, 32, 32))
    for orientation, back in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
                              (8, Image.Transpose.ROTATE_270)):  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        opened = open_picture(encoded(upright.transpose(back), form, exif=exif), "L")
        assert opened.size == (64, 32)
        assert opened.getpixel((8, 16)) < 20 and opened.getpixel((56, 16)) > 235  # type: ignore[operator]


def test_one_bit() -> None:
    picture = Image.new("1", (3, 1))
    picture.putdata([0, 255, 0])
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert pixels(open_picture(encoded(picture, form), "L")) == [0, 255, 0]


def test_cmyk_jpeg() -> None:
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(picture, "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert open_picture(data).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=4)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for form in ("GIF", "PNG", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        path = tmp_path / f"a.{form}"
        path.write_bytes(data)
        for source in (data, path):
            assert open_picture(source).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_open_picture_is_copied(mode: Any) -> None:
    source = Image.new(mode, (4, 4))
    opened = open_picture(source, mode)
    opened.paste(255 if mode == "L" else (255, 255, 255), (0, 0, 4, 4))
    assert opened.mode == mode
    assert source.getextrema() in ((0, 0), ((0, 0),) * 3)


# --------------------------------------------------------------------------------------------- what cannot be opened

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


NOT_PICTURES = {
    "empty": (b"", "unreadable"),
    "text": (b"AB3D\n", "unreadable"),
    "a page": (b"<html>404</html>", "unreadable"),
    "half a PNG": (encoded(noise())[:-60], "unreadable"),
    "half a JPEG": (encoded(noise(), "JPEG")[:-200], "unreadable"),
    "half a GIF": (encoded(noise(), "GIF")[:60], "unreadable"),
    "no width": (png_header(0, 10), "unreadable"),
    "PostScript": (EPS, "unreadable"),
    "an icon": (encoded(noise(32, 32), "ICO"), "unreadable"),  # whose picture is decoded before its size is known
    "over Pillow's bound": (png_header(60_000, 60_000), "too large"),
    "over ours": (png_header(8_000, 8_000), "too large"),
    "over any": (png_header(2**31 - 1, 2**31 - 1), "too large"),
}


@pytest.mark.parametrize(("data", "kind"), NOT_PICTURES.values(), ids=NOT_PICTURES)
def test_what_cannot_be_opened(data: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(PictureError) as caught:
            open_picture(source)
        assert caught.value.kind == kind
        assert str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "no.png", "missing file"), (tmp_path, "unreadable")):
        with pytest.raises(PictureError) as caught:
            open_picture(path)
        assert caught.value.kind == kind


def test_the_bound_on_pixels_is_exact() -> None:
    assert open_picture(noise(40, 20), max_pixels=800).size == (40, 20)
    for source in (noise(40, 20), encoded(noise(40, 20))):
        with pytest.raises(PictureError, match="40 x 20 pixels, the bound is 799") as caught:
            open_picture(source, max_pixels=799)
        assert caught.value.kind == "too large"
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # so that ours is the one that speaks


def test_every_format_that_is_named_is_read() -> None:
    Image.init()
    for name in (*USUAL, *UNUSUAL):
        if name in Image.SAVE and name in Image.OPEN:
            assert open_picture(encoded(noise(), name)).size == noise().size, name


@pytest.mark.parametrize("sides", [(0, 64, 512), (32, 0, 512), (32, 65, 64), (32, 64, 10**8), ("32", 64, 512)])
def test_a_frame_that_no_reader_has_is_refused(sides: Any) -> None:
    with pytest.raises(ValueError, match="no reader's frame"):
        Frame(*sides)


WHOLE = [
    encoded(noise()),
    encoded(noise(), "JPEG"),
    encoded(noise(), "GIF"),
    encoded(noise(), "TIFF"),
    encoded(noise(), "BMP"),
]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(WHOLE), st.data())
def test_damaged_bytes_open_or_are_refused(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for at, byte in draw.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)):
        if at < len(damaged):
            damaged[at] = byte
    try:
        assert open_picture(bytes(damaged), "L").mode == "L"
    except PictureError as error:
        assert error.kind in ("unreadable", "too large")


# -------------------------------------------------------------------------------------------------- a reader's picture

SIZES = st.tuples(st.integers(1, 400), st.integers(1, 200))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([Frame(), Frame(48, 32, 320), Frame(32, 100, 200)]))
def test_fit_has_the_height_and_a_whole_number_of_steps(size: tuple[int, int], frame: Frame) -> None:
    grey = frame.fit(noise(*size))
    width = frame.width_of(*size)
    assert grey.dtype == np.uint8
    assert grey.shape[0] == frame.height
    assert grey.shape[1] % WIDTH_STEP == 0
    assert 0 <= grey.shape[1] - width < WIDTH_STEP
    assert frame.min_width <= width <= frame.max_width
    resized = noise(*size).resize((width, frame.height), Image.Resampling.BILINEAR)
    assert np.array_equal(grey[:, :width], np.asarray(resized))


def test_aspect_is_kept_between_the_bounds() -> None:
    frame = Frame(32, 64, 512)
    assert frame.width_of(160, 60) == 85
    assert frame.width_of(10, 60) == 64
    assert frame.width_of(10_000, 60) == 512
    assert frame.fit(noise(160, 60)).shape == (32, 96)
    assert Frame(32, 16, 100).fit(noise(1000, 60)).shape == (32, 112)


def test_padding_is_the_median_of_the_border_and_depends_on_the_picture_alone() -> None:
    frame = Frame(32, 64, 512)
    picture = Image.new("L", (160, 60), 200)
    picture.paste(10, (40, 20, 120, 40))
    alone = frame.fit(picture)
    assert (alone[:, 85:] == 200).all()
    for other in (noise(300, 60), noise(20, 90), Image.new("L", (500, 40), 3)):
        frame.fit(other)
        assert np.array_equal(frame.fit(picture), alone)
    assert np.array_equal(frame.fit(picture.convert("RGB")), alone)


def test_a_width_that_fits_is_not_padded() -> None:
    picture = noise(96, 32)
    assert np.array_equal(Frame(32, 64, 512).fit(picture), np.asarray(picture))


def test_thin_strokes_do_not_vanish_when_reduced() -> None:
    picture = Image.new("L", (640, 320), 255)
    picture.paste(0, (317, 0, 320, 320))
    assert Frame(32, 64, 512).fit(picture).min() < 230


def test_normalise() -> None:
    batch = np.stack([Frame(32, 64, 64).fit(noise(seed=i)) for i in range(3)])
    batch = (255 * (batch / 255) ** 0.3).astype(np.uint8)  # mostly bright: paper
    normal = normalise(batch)
    assert normal.dtype == np.float32
    assert np.allclose(normal.mean((1, 2)), 0, atol=1e-5)
    assert np.allclose(normal.std((1, 2)), 1, atol=1e-5)
    assert np.array_equal(normal[1], normalise(batch[1]))
    assert np.allclose(normalise(batch // 2), normal, atol=0.05)  # contrast goes


def test_normalise_does_not_blow_up_an_empty_picture() -> None:
    assert not normalise(np.full((4, 4), 255, np.uint8)).any()
    faint = np.tile(np.array([100, 102], np.uint8), (4, 2))
    assert np.abs(normalise(faint)).max() == pytest.approx(1 / 8)


def test_light_ink_on_dark_paper_is_turned_over() -> None:
    rng = np.random.default_rng(0)
    paper = np.full((32, 96), 230, np.uint8)
    paper[8:24, 20:40] = 20
    noisy = (paper + rng.integers(0, 20, paper.shape)).clip(0, 255).astype(np.uint8)
    np.testing.assert_allclose(normalise(noisy), normalise(255 - noisy), atol=1e-5)
    assert normalise(noisy)[16, 30] < -1  # ink is the dark one, either way
    both = normalise(np.stack([noisy, 255 - noisy]))
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize("paper", ["white", "black"])
def test_ink_of_any_colour_stands_out(paper: str) -> None:
    """Yellow on white and blue on black are 29 grey levels from the paper in luminance."""
    picture = Image.new("RGB", (40, 20), paper)
    picture.paste("yellow" if paper == "white" else "blue", (10, 5, 20, 15))
    grey = grey_of(np.asarray(picture)).astype(int)
    assert abs(int(grey[10, 15]) - int(grey[0, 0])) > 180
    assert (grey[5:15, 10:20] == grey[10, 15]).all() and np.unique(grey).size == 2
    seen = Frame(20, 40, 512).fit(picture)
    assert (seen[:, :40] == grey).all()


def test_equal_channels_are_left_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48), dtype=np.uint8)
    assert (grey_of(np.repeat(noise[..., None], 3, 2)) == noise).all()
    as_grey, as_rgb = Image.fromarray(noise), Image.fromarray(noise).convert("RGB")
    frame = Frame(16, 48, 512)
    assert (frame.fit(open_picture(as_grey, None)) == frame.fit(open_picture(as_rgb, None))).all()


# ------------------------------------------------------------------------------------------ the part with the text


def page(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """White, with black uprights from `left` to `right`."""
    picture = Image.new("L", (width, height), 255)
    for x in range(left, right, 4):
        picture.paste(0, (x, top, x + 2, bottom))
    return picture


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 5))
def test_the_part_with_the_text_lies_within_its_picture(size: tuple[int, int], seed: int) -> None:
    rng, frame = np.random.default_rng(seed), Frame(trim=True)
    pixels = np.where(rng.random(size[::-1]) < 0.02 * seed, rng.integers(0, 256, size[::-1]), 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    left, top, right, bottom = frame.part(picture)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    grey = frame.fit(picture)
    assert grey.shape[0] == 32 and np.array_equal(frame.fit(picture.convert("RGB")), grey)


def test_margins_of_paper_are_cut_off() -> None:
    picture = page(400, 160, 100, 60, 300, 100)
    left, top, right, bottom = Frame(trim=True).part(picture)
    tall = 40
    assert abs(left - (100 - 0.4 * tall)) < 9 and abs(right - (300 + 0.4 * tall)) < 9  # 2 % of the ink left out
    assert abs(top - (60 - 0.15 * tall)) < 6 and abs(bottom - (100 + 0.15 * tall)) < 6
    dark = Frame(trim=True).part(Image.fromarray(255 - np.asarray(picture)))
    assert np.abs(np.subtract(dark, (left, top, right, bottom))).max() < 1, "light ink on dark paper"
    assert Frame().part(picture) == (0, 0, 400, 160)


def test_a_line_of_text_is_found_in_a_large_picture() -> None:
    left, top, right, bottom = Frame(trim=True).part(page(1000, 800, 600, 500, 760, 530))
    assert 575 < left < 604 and 756 < right < 785 and 485 < top < 503 and 527 < bottom < 545


def test_few_dots_beside_the_text_do_not_count() -> None:
    dotted = page(400, 160, 100, 60, 300, 100)
    for at in ((10, 10), (390, 150), (200, 5), (20, 140)):
        dotted.paste(0, (*at, at[0] + 3, at[1] + 3))
    clean = Frame(trim=True).part(page(400, 160, 100, 60, 300, 100))
    assert np.abs(np.subtract(Frame(trim=True).part(dotted), clean)).max() < 12


def framed(picture: Image.Image, *wide: int) -> Image.Image:
    """With a black frame, so many pixels at its left, top, right and bottom."""
    left, top, right, bottom = wide
    whole = Image.new("L", (picture.width + left + right, picture.height + top + bottom))
    whole.paste(picture, (left, top))
    return whole


@pytest.mark.parametrize("wide", [(1, 1, 1, 1), (3, 2, 3, 2), (0, 6, 0, 9), (20, 0, 12, 0)])
def test_a_frame_is_cut_off(wide: tuple[int, int, int, int]) -> None:
    inner = page(200, 80, 60, 30, 140, 50)
    expected = np.add(Frame(trim=True).part(inner), (wide[0], wide[1]) * 2)
    for picture in (framed(inner, *wide), Image.fromarray(255 - np.asarray(framed(inner, *wide)))):
        assert np.abs(np.subtract(Frame(trim=True).part(picture), expected)).max() < 0.6, picture.size
        coloured = ImageOps.colorize(picture, "navy", "yellow")
        assert np.abs(np.subtract(Frame(trim=True).part(coloured), expected)).max() < 0.6
    only = Frame(trim=True).part(framed(Image.new("L", (120, 40), 255), *wide))
    assert only == (wide[0], wide[1], wide[0] + 120, wide[1] + 40), "a frame alone"
    assert Frame().part(framed(inner, *wide)) == (0, 0, inner.width + wide[0] + wide[2], 80 + wide[1] + wide[3])


def test_a_line_at_one_side_is_no_frame() -> None:
    inner = page(200, 80, 60, 30, 140, 50)
    under = framed(inner, 0, 0, 0, 3)
    left, _, right, bottom = Frame(trim=True).part(under)
    assert bottom == 83 and left < 40 and right > 160, "it may as well be a stroke"


def test_the_margin_of_bold_letters_is_no_frame() -> None:
    """They have more ink than paper, so that the margin is of another colour than most of the picture."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf", 28)
    for text in ("HWESEE", "MWRB", "BEEHMH"):
        left, top, right, bottom = font.getbbox(text)
        for margin in (2, 3):
            picture = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin), 255)
            ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=0, font=font)
            assert within_frame(picture) == (0, 0, *picture.size), (text, margin)


def test_letters_on_middling_paper_stand_out_darker_or_brighter() -> None:
    picture = Image.new("RGB", (100, 20), (128, 128, 128))
    for left, ink in ((10, (40, 40, 128)), (30, (40, 40, 128)), (60, (128, 230, 128))):
        picture.paste(ink, (left, 5, left + 12, 15))
    grey = grey_of(np.asarray(picture)).astype(int)
    assert all(abs(grey[10, left] - grey[0, 0]) > 70 for left in (10, 30, 60))
    assert np.unique(grey).size == 3


def test_a_text_on_a_textured_paper_is_found() -> None:
    rng = np.random.default_rng(0)
    for size, at, height, contrast in (
        ((200, 80), (50, 20), 36, 0.7),
        ((240, 60), (60, 10), 34, 0.5),
        ((320, 120), (20, 50), 48, 0.7),
    ):
        texture = np.asarray(
            Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8)).filter(ImageFilter.BLUR), float
        )
        picture = Image.fromarray((150 + (texture - texture.mean()) * contrast).clip(0, 255).astype(np.uint8))
        assert Frame(trim=True).part(picture) == (0, 0, *size), "a texture alone"
        drawn, font = ImageDraw.Draw(picture), ImageFont.load_default(height)
        drawn.text(at, "W7KXB", fill=60, font=font)
        ink = drawn.textbbox(at, "W7KXB", font=font)
        left, top, right, bottom = Frame(trim=True).part(picture)
        assert ink[0] - 20 < left < ink[0] and ink[2] < right < ink[2] + 20, (left, right, ink)
        assert ink[1] - 8 < top < ink[1] and ink[3] < bottom < ink[3] + 8, (top, bottom, ink)


def test_strokes_on_coloured_paper_do_not_break_up() -> None:
    """On a middling blue, a red ink is darker in blue and brighter in red: one of them tells, in every pixel."""
    rng = np.random.default_rng(0)
    picture = np.empty((20, 60, 3), np.uint8)
    picture[:] = (110, 120, 200)
    picture[5:15, 20:40] = (200, 40, 112)
    picture = (picture + rng.integers(-9, 10, picture.shape)).clip(0, 255).astype(np.uint8)
    grey = grey_of(picture).astype(int)
    assert np.ptp(grey[5:15, 20:40]) < 30 and abs(grey[5:15, 20:40].mean() - grey[:4].mean()) > 40


@pytest.mark.parametrize("what", ["noise", "blank", "text from side to side"])
def test_where_there_is_nothing_to_cut_off_nothing_is(what: str) -> None:
    picture = noise(120, 40) if what == "noise" else Image.new("L", (120, 40), 255)
    if what == "text from side to side":
        picture = page(120, 40, 0, 0, 120, 40)
    left, top, right, bottom = Frame(trim=True).part(picture)
    assert left < 4 and top < 2 and right > 116 and bottom > 38, (left, top, right, bottom)


def test_one_character_is_not_drawn_out_more_than_twice() -> None:
    left, top, right, bottom = Frame(trim=True).part(page(200, 60, 90, 10, 98, 50))
    assert right - left >= 1.99 * (bottom - top)
    assert abs((left + right) / 2 - 94) < 3, "it stands in the middle"


def test_parts_of_several_pictures_are_those_of_each() -> None:
    greys = np.stack([np.asarray(page(96, 32, 10 * i + 4, 4 + i, 60, 20 + 2 * i)) for i in range(4)])
    together = text_parts(greys)
    for own, grey in zip(together, greys, strict=True):
        np.testing.assert_array_equal(text_parts(grey[None])[0], own)


def test_a_black_block_does_not_hide_grey_letters() -> None:
    """A logo or a banner beside a text must not be taken for all the ink there is."""
    picture = Image.new("L", (260, 60), 255)
    ImageDraw.Draw(picture).text((125, 8), "W7KXB", fill=125, font=ImageFont.load_default(38))
    for wide in (60, 110):
        picture.paste(0, (0, 5, wide, 55))
        left, _, right, _ = Frame(trim=True).part(picture)
        assert left < 5 and right > 235, (left, right)


def test_a_long_text_keeps_its_ends() -> None:
    picture = page(1200, 60, 60, 15, 1140, 45)
    left, _, right, _ = Frame(trim=True).part(picture)
    assert left <= 60 and right >= 1138


def test_a_picture_of_one_column_costs_little() -> None:
    tall = Image.new("RGB", (1, 500_000), "white")
    tall.paste("black", (0, 250_000, 1, 250_100))
    assert Frame(trim=True).fit(tall).shape == Frame().fit(tall).shape == (32, 64)
    assert Frame(trim=True).fit(tall.rotate(90, expand=True)).shape[0] == 32


def tiled(width: int, height: int, side: int) -> bytes:
    """A black TIFF of square tiles, of which its file holds the first and names it for all."""
    tile, n = zlib.compress(bytes(side * side), 9), -(-width // side) * -(-height // side)
    size = 8 + 2 + 12 * 10 + 4
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side),
        (324, 4, n, size + (n > 1) * len(tile)), (325, 4, n, len(tile) if n == 1 else size + len(tile) + 4 * n),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    more = b"" if n == 1 else struct.pack(f"<{2 * n}I", *[size] * n, *[len(tile)] * n)
    return head + struct.pack("<I", 0) + tile + more


def test_a_tile_or_scans_that_no_picture_of_that_size_needs_are_not_decoded() -> None:
    small = open_picture(tiled(100, 30, 64))
    assert small.size == (100, 30) and set(pixels(small.convert("L"))) == {0}
    with pytest.raises(PictureError, match="tiles of 16777216 pixels, the bound is 16000000") as refused:
        open_picture(tiled(100, 30, 4096))
    assert refused.value.kind == "too large"
    jpeg = encoded(noise(), "JPEG", progressive=True)
    assert open_picture(jpeg).size == noise().size
    start = jpeg.rindex(b"\xff\xda")
    bomb = jpeg[:start] + jpeg[start:-2] * 200 + jpeg[-2:]
    with pytest.raises(PictureError, match="scans, the bound is 100"):
        open_picture(bomb)
    assert open_picture(jpeg + b"film\xff\xda" * 200).size == noise().size, "what is behind the picture is not of it"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_does_not_cost_the_picture(form: str) -> None:
    data = encoded(noise(), form, exif=b"Exif\0\0" + b"\0" * 20, **({"dpi": (72, 72)} if form == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as picture, pytest.raises(SyntaxError):  # or it tests nothing
        picture.load()
        picture.getexif()
    assert open_picture(data).size == noise().size
