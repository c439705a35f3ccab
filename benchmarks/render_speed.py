"""How many pictures a second `render` draws, against the captcha library, in one run on one thread.

    python benchmarks/render_speed.py [--fonts runs/fonts]

CPU time; both draw texts of 4 to 6 letters and digits, in turn, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import captcha.image
import torch

from augment.methods.render import Render, RenderSettings
from augment.synthesize import random_texts
from recognizer.charset import Charset

AT_ONCE = 512
SIZES = {"grey, 96 x 32": ((96, 32), 1), "colour, 96 x 32": ((96, 32), 3), "colour, 160 x 60": ((160, 60), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    render = Render(RenderSettings(fonts=tuple(given.fonts), difficulty=1.0))
    library = captcha.image.ImageCaptcha(160, 60)
    texts = random_texts(Charset.named("letters+digits"), (4, 5, 6), AT_ONCE, 0)
    rates: dict[str, list[float]] = {"captcha library, 160 x 60": [], **{name: [] for name in SIZES}}
    for k in range(given.rounds + 1):
        began = time.process_time()
        for text in texts[:100]:
            library.generate_image(text)
        took = {"captcha library, 160 x 60": (time.process_time() - began) / 100}
        for name, (size, channels) in SIZES.items():
            began = time.process_time()
            render.draw(texts, range(k * AT_ONCE, (k + 1) * AT_ONCE), size, channels)
            took[name] = (time.process_time() - began) / AT_ONCE
        if k:  # the first round warms up
            for name, seconds in took.items():
                rates[name].append(1 / seconds)
    medians = {name: round(statistics.median(own)) for name, own in rates.items()}
    base = medians["captcha library, 160 x 60"]
    print(json.dumps({"pictures_a_cpu_second": medians, "ratio": {n: round(v / base, 1) for n, v in medians.items()}}))


if __name__ == "__main__":
    main()
