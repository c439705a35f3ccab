"""Learn from unlabelled pictures: read them, take sure readings for labels, train again (Lee 2013, "Pseudo-Label").

    round 0: the labels alone -> read what has none -> keep what is sure enough -> round 1: both -> read again -> ...

What is sure enough goes by character (Zou et al. 2018, "Unsupervised domain adaptation for semantic segmentation via
class-balanced self-training", arXiv 1810.07911): one that is often confused would else hardly be taken at all, and be
unlearned for what it is confused with. Every round starts from the same weights, so that what an earlier one misread is
not learned twice; the last learns for as long as is due to so many real pictures. Validation is always on real labels.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
from accelerate import PartialState
from numpy.typing import ArrayLike, NDArray

from recognizer.decode import Constraint
from recognizer.deploy.export import export
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, Grey, PictureError, open_picture
from recognizer.progress import Bar, Process, say
from recognizer.reader import Reader
from recognizer.readings import Reading, Scores
from recognizer.samples import FolderWriter, Sample, each_once, list_pictures, merge, read_manifest
from recognizer.training.evaluate import no_device
from recognizer.training.seeds import keep, open_folder, resumed_by, train_seeds
from recognizer.training.train import TrainSettings, as_good

GROUP = 256  # pictures that are open at a time
LIKELY = 0.5  # a reading that is less so is never taken for the sake of its characters
DOUBTED = 0.3  # nor one that is less so than that because too few are surer


def train_with_unlabelled(settings: TrainSettings, out: Path, resume: bool = False) -> Scores:
    """Train into `out/round-0`, `out/round-1`, ...; the weights of `last_as_good` become the run's.

    A killed run goes on where it was. `out/pseudo-1`, ... hold what was taken for labelled in each round.

    Raises:
        UserError: as `train`, or no picture among the unlabelled.
        Stopped: Ctrl-C; the run is saved and can be resumed.
    """
    process = PartialState(cpu=no_device())
    labelled = labelled_by(settings)
    files = without_labels(settings.unlabelled, labelled, process, settings.max_pixels)
    open_folder(settings, out, resume, process)
    own = settings.model_copy(update={"unlabelled": ()})
    with resumed_by(out):
        scores = [train_seeds(own, out / "round-0", (out / "round-0" / "settings.toml").is_file())]
    for number in range(1, settings.unlabelled_rounds + 1):
        pseudo = out / f"pseudo-{number}"
        if process.is_main_process and not pseudo.exists():
            export(out / f"round-{number - 1}")
            reader = Reader(out / f"round-{number - 1}", max_pixels=settings.max_pixels)
            shown = set().union(*(s.text for s in labelled))
            least, lengths = settings.unlabelled_confidence, lengths_of(labelled)
            fewest = share_at_least(settings.unlabelled_fewest, number)
            kept = take_surest(reader, files, least, pseudo, lengths, shown=shown, fewest=fewest)
            say(process, f"round {number}: {kept} of {len(files)} unlabelled pictures are taken as they are read")
        process.wait_for_everyone()
        if not any(pseudo.iterdir()):
            break
        taken, made = (sum(len(read_manifest(f)) for f in folders) for folders in ([pseudo], own.with_synthetic))
        share = own.synthetic_share + taken / (taken + made) * (own.unlabelled_share - own.synthetic_share)
        more = own.model_copy(update={"with_synthetic": (*own.with_synthetic, str(pseudo)), "synthetic_share": share})
        if number == settings.unlabelled_rounds:  # pictures as real as labelled ones, and nearly as often right
            more = more.model_copy(update={"pictures": own.pictures_for(learned_from(settings) + taken)})
        run = out / f"round-{number}"
        with resumed_by(out):
            scores.append(train_seeds(more, run, (run / "settings.toml").is_file()))
    kept = last_as_good(scores)
    if process.is_main_process:
        keep(out / f"round-{kept}", out)
        say(process, f"validation: {', '.join(f'{s.exact:.3f}' for s in scores)} by round; kept is round {kept}")
    process.wait_for_everyone()
    return scores[kept]


def last_as_good(scores: Sequence[Scores]) -> int:
    """The round whose reader is kept, by what each read of validation: the last that was as good as the best before,
    as far as so few pictures can tell."""
    kept, best = 0, (0.0, float("-inf"))
    for number, own in enumerate(scores):
        if number == 0 or as_good(own, best):
            kept = number
        best = max(best, (own.exact, -own.character_error_rate))
    return kept


def learned_from(settings: TrainSettings) -> int:
    """About how many labels a training learns from, those apart that validate or are kept from before."""
    known = len(labelled_by(settings.model_copy(update={"keep": (), "validation": None})))
    return known if settings.validation else round(known * (1 - settings.validation_share))


def labelled_by(settings: TrainSettings) -> list[Sample]:
    """All samples whose labels a training is given."""
    known = merge([read_manifest(path, settings.label_pattern) for path in settings.data])
    known = known.first(settings.limit) if settings.limit else known
    others = [*settings.keep, *([settings.validation] if settings.validation else [])]
    return [*known, *(s for path in others for s in read_manifest(path, settings.label_pattern))]


def without_labels(
    folders: Sequence[str | Path], labelled: Sequence[Sample], process: Process, max_pixels: int = MAX_PIXELS
) -> list[Path]:
    """The pictures of some folders, each once, but for the labelled: what validates or tests must not be trained on.

    Raises:
        UserError: none is there, or none of them can be opened.
    """
    files = [file for folder in folders for file in list_pictures(Path(folder)) if file.exists()]  # no link to nowhere
    left = each_once([Sample(str(file), "", file) for file in files], labelled)
    if twice := len(files) - len(left):
        say(process, f"{twice} of {len(files)} unlabelled pictures are labelled or there twice, and are left out")
    if not left:
        raise UserError(f"--unlabelled {' '.join(map(str, folders))}: no picture is there that has no label")
    if not any(opens(s, max_pixels) for s in left):  # which would be seen after the first training
        raise UserError(f"--unlabelled {' '.join(map(str, folders))}: no picture there can be opened")
    return [s.path for s in left if s.path]


def opens(sample: Sample, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a sample's picture can be opened."""
    try:
        open_picture(sample.read_bytes(), "L", max_pixels)
    except PictureError:
        return False
    return True


def read_files(
    reader: Reader, files: Sequence[Path], constraint: Constraint | None, process: Process
) -> dict[Path, Reading]:
    """What a reader reads in pictures without labels, by file; those that cannot be opened are left out."""
    found: dict[Path, Reading] = {}
    with Bar(process, "reading unlabelled", len(files)) as bar:
        for k in range(0, len(files), GROUP):
            greys: dict[Path, Grey] = {}
            for file in files[k : k + GROUP]:
                with suppress(PictureError):  # is nobody's training picture
                    greys[file] = reader.open(file)
            found.update(zip(greys, reader.read(list(greys.values()), constraint), strict=True))
            for _ in files[k : k + GROUP]:
                bar.advance()
    return found


def take_surest(
    reader: Reader, files: Sequence[Path], least: float, out: Path, lengths: Container[int] | None = None,
    constraint: Constraint | None = None, known_as: Mapping[str, str] = MappingProxyType({}),
    shown: Container[str] | None = None, fewest: float = 0.0,
) -> int:  # fmt: skip
    """Write the pictures in which something is read surely as a labelled folder; gives their number. `lengths` are
    those that a reading may have, `known_as` says what to call a character that is read, `shown` is `surely`'s, and
    `fewest` `limit`'s."""
    every = read_files(reader, files, constraint, PartialState())
    if broken := len(files) - len(every):
        say(PartialState(), f"{broken} of {len(files)} unlabelled pictures cannot be opened, and are left out")
    found = [(f, r) for f, r in every.items() if r.text and (lengths is None or len(r.text) in lengths)]
    likely = [r.confidence for _, r in found]
    least = limit(likely, least, fewest)
    sure = np.flatnonzero(surely([r.text for _, r in found], likely, least, shown)).tolist()
    if not sure:  # an empty folder says that there was nothing
        out.mkdir(parents=True)
        return 0
    with FolderWriter(out) as writer:
        for kept, (file, reading) in enumerate(found[i] for i in sure):
            text = "".join(known_as.get(c, c) for c in reading.text)
            about = {"source": str(file), "confidence": round(reading.confidence, 4)}
            writer.add(f"{kept:06d}{file.suffix.lower()}", file.read_bytes(), text, about)
    return len(sure)


def lengths_of(samples: Sequence[Sample]) -> range:
    """The lengths of texts from the shortest label's to the longest's."""
    lengths = [len(s.text) for s in samples]
    return range(min(lengths, default=0), max(lengths, default=0) + 1)


def limit(likely: ArrayLike, least: float, fewest: float, taken: int = 0, most: int | None = None) -> float:
    """How likely a reading must be to be taken: `least`, or where fewer than a share `fewest` of all would be taken so,
    as likely as the likeliest of that share are, but for `DOUBTED` ones. A reader that is sure of hardly any picture
    would else never be taught by those that it reads best (Cascante-Bonilla et al. 2021, "Curriculum labeling", arXiv
    2001.06001).

    Args:
        likely: n probabilities of readings.
        taken: how many more were taken before.
        most: no more are wanted, however many there are.
    """
    of = np.sort(np.asarray(likely, float))
    wanted = int(min(fewest, 1.0) * (len(of) + taken)) - taken
    wanted = wanted if most is None else min(wanted, most)
    return min(least, max(DOUBTED, float(of[-wanted]))) if wanted > 0 else least


def share_at_least(fewest: float, number: int) -> float:
    """The share of pictures without labels that a round, from 1, takes at least: `fewest`, and then twice that."""
    return fewest * min(number, 2)


def surely(
    texts: Sequence[str], likely: ArrayLike, least: float, shown: Container[str] | None = None
) -> NDArray[np.bool_]:
    """Which readings are taken for labels: those that are likely by `least`, and of each character the likeliest, until
    as large a share of its readings is taken as of all, if they are likely by `LIKELY`.

    Args:
        texts: n readings that are not empty.
        likely: n probabilities of them.
        shown: the characters that are known to be there, as in labels: of one that is not there the likeliest reading
            is wrong, so that of others none is taken which is less likely than `least`. All, unless told.
    """
    of = np.asarray(likely, float)
    share = float(np.mean(of >= least)) if len(of) else 0.0
    least_of = {}
    for c in set().union(*texts):
        own = sorted((p for text, p in zip(texts, of, strict=True) if c in text), reverse=True)
        wanted = int(share * len(own))
        least_of[c] = min(least, max(LIKELY, own[wanted - 1])) if wanted else least
    known = [shown is None or all(c in shown for c in text) for text in texts]
    return of >= [min(least_of[c] for c in text) if own else least for text, own in zip(texts, known, strict=True)]
