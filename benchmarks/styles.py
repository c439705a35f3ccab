"""How much of other styles a reader reads without their labels: what other packages draw, and what none does.

    pip install claptcha wheezy.captcha easy-captcha-python gvcode kaptcha simpel-captcha captchagen
    pip install flask-simple-captcha
    python benchmarks/styles.py [--model PATH] [--count 150] [--out runs/styles]
    python benchmarks/styles.py --sets ROOT --styles gvcode kaptcha [--count 1500]

Draws each style once into a folder of `--out`, of text that a seed gives, and prints how many pictures are read right,
ignoring case, by the text parts that the reader sees and by whole pictures. A package that is not installed is left
out. With `--sets` nothing is read: two thirds of each style become `ROOT/STYLE/train` and the rest `ROOT/STYLE/test`,
for `practice_sets.py`. `serial`: stamped on brushed metal. `segments`: seven-segment digits, of diodes or liquid
crystal. `framed`: black on white in a frame of a pixel. `coloured`: coloured ink on coloured, noisy paper, with lines.
`printed`: amounts, dates, times and serial numbers with marks in them, plain. `counter`: the wheels of a meter,
the last of which turns. `amount`: written by hand on tinted, patterned paper, of the digits that scikit-learn holds,
which 13 people wrote; `train` and `test` share none of these.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from recognizer.images import open_picture
from recognizer.reader import Reader
from recognizer.readings import wilson
from recognizer.samples import FolderWriter, read_manifest

DIGITS, UPPER = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LIT = {"0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc",
       "5": "afgcd", "6": "afgedc", "7": "abc", "8": "abcdefg", "9": "abcdfg"}  # fmt: skip
Drawn = tuple[str, Image.Image]


class Styles:
    """Draws pictures with their text, by the name of a style."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.flask: Any = None
        self.written: dict[int, NDArray[np.float64]] | None = None
        self.part = 0  # which of the folders that are drawn
        faces = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.fonts = [str(path) for path in sorted(faces.glob("DejaVuS*.ttf")) if "Display" not in path.name]

    def face(self) -> str:
        return str(self.rng.choice(self.fonts))

    def text(self, characters: str, least: int, most: int) -> str:
        return "".join(self.rng.choice(list(characters), self.rng.integers(least, most + 1)))

    def line(self, text: str, size: int) -> Image.Image:
        """A text in any face, white on black, cut to its ink."""
        mask = Image.new("L", (size * (len(text) + 2), size * 3))
        ImageDraw.Draw(mask).text((size, size), text, fill=255, font=ImageFont.truetype(self.face(), size))
        return mask.crop(mask.getbbox())

    def around(self, mask: Image.Image, least: int, most: int) -> Image.Image:
        """With margins of so many pixels."""
        left, top, right, bottom = self.rng.integers(least, most + 1, 4).tolist()
        whole = Image.new("L", (mask.width + left + right, mask.height + top + bottom))
        whole.paste(mask, (left, top))
        return whole

    def serial(self) -> Drawn:
        rng, text = self.rng, self.text(UPPER + DIGITS, 6, 9)
        mask = self.around(self.line(text, int(rng.integers(28, 45))), 16, 60)
        mask = mask.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.8))
        ink, grain = np.asarray(mask) / 255, rng.normal(size=mask.size[::-1])
        long = int(rng.choice([1, 15, 41]))
        grain = np.stack([np.convolve(row, np.ones(long) / long**0.5, "same") for row in grain])
        metal = (
            rng.uniform(110, 180) + rng.uniform(5, 14) * grain + np.linspace(-1, 1, mask.width) * rng.uniform(-30, 30)
        )
        light, shade = (np.clip(np.roll(ink, (by, by), (0, 1)) - ink, 0, 1) for by in (1, -1))
        metal += rng.uniform(20, 50) * (light - shade) - rng.uniform(25, 70) * ink
        return text, Image.fromarray(metal.clip(0, 255).astype(np.uint8))

    def segments(self) -> Drawn:
        rng, text = self.rng, self.text(DIGITS, 4, 7)
        h = float(rng.integers(80, 141))
        w, thick, slant = h * rng.uniform(0.42, 0.55), h * rng.uniform(0.08, 0.14), float(rng.choice([0, 0.1, 0.15]))
        gap = w * rng.uniform(0.45, 0.8)
        diodes = rng.random() < 0.5
        paper = rng.integers(5, 26, 3) if diodes else rng.integers(130, 200, 3)
        lit = (
            np.array([[255, 40, 30], [60, 255, 80], [90, 190, 255]])[rng.integers(3)]
            if diodes
            else rng.integers(20, 51, 3)
        )
        unlit = paper + (lit - paper) * rng.uniform(0, 0.15)
        size = (int(len(text) * (w + gap) + gap + h * 0.4), int(h * rng.uniform(1.35, 1.9)))
        picture = Image.new("RGB", size, tuple(paper.tolist()))
        pen, top = ImageDraw.Draw(picture), (size[1] - h) / 2
        ends = {"a": (0, 0, 1, 0), "g": (0, 0.5, 1, 0.5), "d": (0, 1, 1, 1), "f": (0, 0, 0, 0.5),
                "e": (0, 0.5, 0, 1), "b": (1, 0, 1, 0.5), "c": (1, 0.5, 1, 1)}  # fmt: skip
        for i, digit in enumerate(text):
            for name, (x0, y0, x1, y1) in ends.items():
                x = gap * 0.7 + thick / 2 + i * (w + gap)
                at = [(x + a * w + slant * h * (1 - b), top + b * h) for a, b in ((x0, y0), (x1, y1))]
                colour = tuple((lit if name in LIT[digit] else unlit).astype(int).tolist())
                short = 0.5 * thick  # of each end, so that segments do not touch
                (ax, ay), (bx, by) = at
                far = max(np.hypot(bx - ax, by - ay), 1.0)
                dx, dy = (bx - ax) / far * short, (by - ay) / far * short
                pen.line([(ax + dx, ay + dy), (bx - dx, by - dy)], fill=colour, width=round(thick))
        if diodes:
            picture = Image.blend(picture, picture.filter(ImageFilter.GaussianBlur(thick * 0.6)), 0.4)
        small = picture.resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
        noisy = np.asarray(small, float) + rng.normal(0, rng.uniform(1, 6), (small.height, small.width, 1))
        return text, Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    def framed(self) -> Drawn:
        text = self.text(UPPER + DIGITS, 4, 6)
        mask = self.around(self.line(text, int(self.rng.integers(24, 40))), 4, 24)
        picture = Image.fromarray(255 - np.asarray(mask))
        ImageDraw.Draw(picture).rectangle((0, 0, mask.width - 1, mask.height - 1), outline=0)
        return text, picture

    def printed(self) -> Drawn:
        rng, whole = self.rng, int(10 ** self.rng.uniform(0.5, 4.5))
        day, month, cents = rng.integers(1, 29), rng.integers(1, 13), rng.integers(100)
        serial = f"{self.text(UPPER, 2, 3)}-{self.text(DIGITS, 3, 5)}"
        forms = [f"{whole:,}.{cents:02}", f"${whole}.{cents:02}", f"{whole},{cents:02}€", f"{day:02}/{month:02}/26",
                 f"{day:02}.{month:02}.26", f"{month:02}:{cents % 60:02}", serial, f"#{whole}"]  # fmt: skip
        text = str(rng.choice(forms))
        mask = self.around(self.line(text, int(rng.integers(18, 40))), 4, 20)
        ink = np.asarray(mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))) / 255
        grey = rng.uniform(180, 255) - rng.uniform(90, 180) * ink + rng.normal(0, rng.uniform(0, 12), ink.shape)
        return text, Image.fromarray(grey.clip(0, 255).astype(np.uint8))

    def coloured(self) -> Drawn:
        rng, text = self.rng, self.text(UPPER + DIGITS, 4, 6)
        mask = self.around(self.line(text, int(rng.integers(28, 40))), 6, 24)
        paper, ink = rng.integers(60, 256, 3), rng.integers(0, 256, 3)
        while np.abs(ink - paper).max() < 100:
            ink = rng.integers(0, 256, 3)
        pen = ImageDraw.Draw(mask)
        for _ in range(int(rng.integers(3))):
            ends = [(int(rng.integers(mask.width)), int(rng.integers(mask.height))) for _ in range(2)]
            pen.line(ends, fill=200, width=1)
        share = np.asarray(mask)[..., None] / 255
        colours = paper + (ink - paper) * share + rng.normal(0, rng.uniform(2, 12), (*share.shape[:2], 3))
        return text, Image.fromarray(colours.clip(0, 255).astype(np.uint8))

    def counter(self) -> Drawn:
        rng, text = self.rng, self.text(DIGITS, 5, 7)
        wide, tall = 34, 56  # of a wheel's window, with the gap beside it
        font = ImageFont.truetype(self.face(), int(rng.integers(30, 38)))
        picture = Image.new("RGB", (len(text) * wide + 24, tall + 20), tuple(rng.integers(100, 200, 3).tolist()))
        red = rng.random() < 0.5
        for i, digit in enumerate(text):
            window = Image.new("RGB", (wide - 4, tall), (150, 25, 25) if red and i >= len(text) - 2 else (20, 20, 22))
            pen = ImageDraw.Draw(window)
            turned = rng.normal(0, 1.5) if i < len(text) - 1 else rng.uniform(0, 0.45) * tall
            for k in (-1, 0, 1):
                shown = str((int(digit) + k) % 10)
                left = (window.width - pen.textlength(shown, font)) / 2
                pen.text((left, (0.12 + k) * tall - turned), shown, (235, 235, 225), font)
            picture.paste(window, (12 + i * wide, 10))
        y, x = np.mgrid[: picture.height, : picture.width]
        far = (x - rng.uniform(0, picture.width)) ** 2 / rng.uniform(20, 60) ** 2
        far = far + (y - rng.uniform(0, picture.height)) ** 2 / rng.uniform(10, 30) ** 2
        seen = np.asarray(picture) * rng.uniform(0.5, 1.1) + rng.uniform(0, 130) * np.exp(-far)[..., None]
        seen = seen + rng.normal(0, rng.uniform(2, 10), seen.shape)
        picture = Image.fromarray(seen.clip(0, 255).astype(np.uint8))
        picture = picture.rotate(rng.normal(0, 2), Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))
        return text, picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))

    def amount(self) -> Drawn:
        from sklearn.datasets import load_digits

        rng = self.rng
        if self.written is None:
            every = load_digits()
            self.written = {d: every.images[np.flatnonzero(every.target == d)] for d in range(10)}
        form = ["{:,}.{:02}", "{}.{:02}", "{}-{:02}"][rng.integers(3)]
        text = form.format(int(10 ** rng.uniform(1.2, 5.7)), rng.integers(100))
        size, slope, base, x = rng.uniform(24, 34), rng.uniform(-0.06, 0.06), 44, float(rng.integers(6, 20))
        sheet = Image.new("L", (40 + 40 * len(text), 64))
        pen = ImageDraw.Draw(sheet)
        for c in text:
            y = base + slope * x + rng.normal(0, 1.2)
            if c.isdigit():
                own = self.written[int(c)]
                own = own[: len(own) * 3 // 4] if self.part == 0 else own[len(own) * 3 // 4 :]
                digit = Image.fromarray((own[rng.integers(len(own))] * 15.9).astype(np.uint8))
                tall = size * rng.uniform(0.9, 1.1)
                digit = digit.resize((round(tall * 0.85), round(tall)), Image.Resampling.BICUBIC)
                digit = digit.rotate(rng.normal(0, 4), Image.Resampling.BICUBIC, expand=True)
                ink = Image.fromarray(((np.asarray(digit) / 255 - 0.35) * 3 * 255).clip(0, 255).astype(np.uint8))
                ink = ink.crop(ink.getbbox())
                sheet.paste(255, (round(x), round(y - ink.height)), ink)
                x += ink.width + rng.normal(2, 1.5)
            elif c == "-":
                pen.line([(x + 1, y - 12), (x + 10, y - 12 + rng.normal(0, 1))], 255, 3)
                x += 13
            else:
                pen.line([(x + 3, y - 2), (x + 3, y) if c == "." else (x + 1, y + 6)], 255, 3)
                x += 7
        sheet = sheet.crop((0, 0, round(x) + int(rng.integers(4, 30)), 64)).filter(ImageFilter.GaussianBlur(0.5))
        across, down = np.meshgrid(np.arange(sheet.width), np.arange(64))
        pattern = 8 * np.sin(across * rng.uniform(0.2, 0.6) + down * rng.uniform(-0.4, 0.4))
        paper = rng.uniform(190, 245, 3) + (pattern + rng.normal(0, 4, pattern.shape))[..., None]
        colour = np.array([[20, 30, 110], [15, 15, 20], [40, 40, 60]])[rng.integers(3)]
        page = paper + (colour - paper) * 0.9 * np.asarray(sheet)[..., None] / 255
        picture = Image.fromarray(page.clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        if rng.random() < 0.5:
            pen.rectangle([1, 4, picture.width - 2, 59], outline=(90, 90, 90))
        else:
            pen.line([(0, base + 4), (picture.width, base + 4 + slope * picture.width)], (120, 120, 120))
        return text, picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))

    def claptcha(self) -> Drawn:
        from claptcha import Claptcha

        if not hasattr(ImageFont.FreeTypeFont, "getsize"):  # which it asks for, and Pillow has no more
            ImageFont.FreeTypeFont.getsize = lambda font, text: font.getbbox(text)[2:]  # type: ignore[attr-defined]
        text = self.text(UPPER + UPPER.lower() + DIGITS, 4, 6)
        return Claptcha(text, self.face()).image

    def wheezy(self) -> Drawn:
        from wheezy.captcha import image as of

        text = self.text(UPPER + DIGITS, 4, 4)
        letters = of.text(fonts=[self.face()], drawings=[of.warp(), of.rotate(), of.offset()])
        return text, of.captcha(drawings=[of.background(), letters, of.curve(), of.noise(), of.smooth()])(text)

    def easy(self) -> Drawn:
        from easy_captcha import SpecCaptcha

        drawn, file = SpecCaptcha(130, 48, 5), io.BytesIO()
        drawn.out(file)
        return drawn.text(), Image.open(file)

    def gvcode(self) -> Drawn:
        from gvcode import VFCode

        drawn = VFCode()
        drawn.generate_mix()
        return drawn.code, Image.open(io.BytesIO(drawn.get_img_bytes()))

    def kaptcha(self) -> Drawn:
        from kaptcha import Captcha

        while True:
            try:
                text, coded = Captcha().letter_digit()
            except ValueError:  # it throws a box upside down now and then
                continue
            return text, Image.open(io.BytesIO(base64.b64decode(coded.partition(",")[2])))

    def simpel(self) -> Drawn:
        from simpel_captcha import img_captcha

        picture, text = img_captcha()
        return text, picture

    def captchagen(self) -> Drawn:
        from CaptchaGen import CaptchaConfig, CaptchaGenerator

        how = CaptchaConfig(noise=True, rotate=True, random_color=True, text_mode="alnum")
        drawn = CaptchaGenerator(str(Path(self.fonts[0]).parent), how)
        drawn.fonts = self.fonts
        picture, text = drawn.generate()
        return text, picture

    def flask_simple(self) -> Drawn:
        from flask_simple_captcha import CAPTCHA, captcha_generation

        captcha_generation.jwtencrypt = lambda *given, **named: ""  # no need to sign it
        if self.flask is None:
            self.flask = CAPTCHA({"SECRET_CAPTCHA_KEY": "a key of no use"})
            self.flask.characters = tuple(sorted(self.flask.characters))
            self.flask.fonts = sorted(self.flask.fonts, key=lambda font: font.path)
        drawn = self.flask.create()
        return drawn["text"], Image.open(io.BytesIO(base64.b64decode(drawn["img"])))


NAMES = (
    "serial", "segments", "framed", "coloured", "printed", "counter", "amount", "claptcha", "wheezy", "easy",
    "gvcode", "kaptcha", "simpel", "captchagen", "flask_simple",
)  # fmt: skip


def draw(name: str, *parts: tuple[Path, int]) -> None:
    """Draw a style into labelled folders of so many pictures.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    seed = zlib.crc32(name.encode())
    random.seed(seed)  # what the packages throw
    np.random.seed(seed)
    styles = Styles(np.random.default_rng(seed))
    drawn: Callable[[], Drawn] = getattr(styles, name)
    for styles.part, (folder, count) in enumerate(parts):
        with FolderWriter(folder) as writer:
            for i in range(count):
                text, picture = drawn()
                file = io.BytesIO()
                picture.convert("RGB").save(file, "PNG")
                writer.add(f"{i:03d}.png", file.getvalue(), text, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--styles", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/styles"))
    given = parser.parse_args()
    if not given.sets:
        print(f"{'style':<12} {'n':>5} {'read right':>11} {'95 % interval':>15} {'whole pictures':>15}")
    for name in given.styles:
        parts, test = [(given.out / name, given.count)], given.count // 3
        if given.sets:
            parts = [(given.sets / name / "train", given.count - test), (given.sets / name / "test", test)]
        if not parts[-1][0].exists():
            try:
                draw(name, *parts)
            except ModuleNotFoundError as error:
                print(f"{name:<12} {error.name} is not installed")
                continue
        if given.sets:
            continue
        samples = read_manifest(given.out / name).samples
        right = []
        reader = Reader(given.model)
        for trim in (True, False):
            reader.frame = replace(reader.frame, trim=trim)
            greys = [reader.frame.fit(open_picture(s.path, None)) for s in samples]
            read = [reading.text for reading in reader.read(greys)]
            right.append(sum(r.casefold() == s.text.casefold() for r, s in zip(read, samples, strict=True)))
        low, high = wilson(right[0], len(samples))
        n = len(samples)
        print(f"{name:<12} {n:>5} {right[0] / n:>11.3f} {f'{low:.3f} to {high:.3f}':>15} {right[1] / n:>15.3f}")


if __name__ == "__main__":
    main()
