"""Bring the open fonts that the default reader was pretrained on: `python benchmarks/fonts.py OUT`.

The list is configs/fonts.txt: families of npm's @fontsource and packages of Debian (both fetched by those tools, which
must be there). A family that cannot be had is named and left out; a font that is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

LIST = Path(__file__).parent.parent / "configs" / "fonts.txt"
WEB = re.compile(r"package/files/(.*-latin-(?:400|700)-(?:normal|italic)\.woff)")
SYSTEM = {".ttf", ".otf"}
SYMBOLS = re.compile("D050000L|StandardSymbols|DSEGWeather|SEGGCHAN")  # draw other signs for letters
SEGMENTS = re.compile("DSEG7")  # whose S is a 5, so that only their digits are kept, in a folder of their own


def wanted() -> tuple[list[str], list[str]]:
    """Families of @fontsource, and packages of Debian."""
    web: list[str] = []
    debian: list[str] = []
    for line in LIST.read_text().splitlines():
        if not line.startswith("#"):
            (debian if line.startswith("debian:") else web).extend(line.removeprefix("debian:").split())
    return web, debian


def from_npm(family: str, out: Path, tmp: Path) -> int:
    subprocess.run(["npm", "pack", "--silent", f"@fontsource/{family}"], cwd=tmp, check=True, capture_output=True)
    n = 0
    for archive in tmp.glob("*.tgz"):
        with tarfile.open(archive) as tar:
            for member in tar:
                if found := WEB.fullmatch(member.name):
                    data = tar.extractfile(member)
                    assert data is not None
                    (out / found[1]).write_bytes(data.read())
                    n += 1
        archive.unlink()
    return n


def from_debian(package: str, out: Path, tmp: Path) -> int:
    subprocess.run(["apt-get", "download", "-qq", package], cwd=tmp, check=True, capture_output=True)
    n = 0
    for archive in tmp.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive.name, "unpacked"], cwd=tmp, check=True)
        archive.unlink()
    for path in sorted((tmp / "unpacked").rglob("*")):
        if path.suffix in SYSTEM and not SYMBOLS.search(path.name) and path.is_file() and not path.is_symlink():
            if SEGMENTS.search(path.name):
                (out / "segments").mkdir(exist_ok=True)
                only_digits(path, out / "segments" / f"{package}-{path.name}")
            else:
                shutil.copy(path, out / f"{package}-{path.name}")
            n += 1
    shutil.rmtree(tmp / "unpacked", ignore_errors=True)
    return n


def only_digits(source: Path, out: Path) -> None:
    font = TTFont(source)
    subsetter = Subsetter(Options(notdef_outline=True))
    subsetter.populate(text="0123456789")
    subsetter.subset(font)
    font.save(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    web, debian = wanted()
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        for source, fetch, names in (("npm", from_npm, web), ("Debian", from_debian, debian)):
            for name in names:
                if any(out.glob(f"{name}-latin-*" if source == "npm" else f"{name}-*")):
                    continue
                try:
                    found = fetch(name, out, Path(folder))
                except (subprocess.CalledProcessError, FileNotFoundError):
                    found = 0
                if not found:
                    missing.append(f"{name} ({source})")
                print(f"\r{len(list(out.iterdir()))} fonts", end="", file=sys.stderr, flush=True)
    print(f"\n{out}: {len(list(out.iterdir()))} fonts" + (f"; not to be had: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
