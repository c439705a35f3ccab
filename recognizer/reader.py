"""Read pictures with an exported recognizer: numpy, pillow and ONNX Runtime alone.

One ONNX file is enough: charset, sizes and scores stand in its metadata.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from recognizer.charset import NAMED, Charset
from recognizer.decode import Constraint, alignment, beam, greedy, sequence_probabilities
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, STRIDE, Frame, Grey, normalise, open_picture
from recognizer.readings import Reading

SHIPPED = Path(__file__).parent / "weights"
DEFAULT, TINY = SHIPPED / "reader.onnx", SHIPPED / "tiny.onnx"
BEAM = 25
LogProbs = NDArray[np.float32]


def find_model(path: Path | None) -> Path:
    """The ONNX file at `path`: the file itself, or `reader.onnx` in a run's folder; None or `default` is the default
    reader, `tiny` the shipped small one.

    Raises:
        UserError: there is none.
    """
    if path is None or (str(path) == "default" and not path.exists()):
        if not DEFAULT.is_file() and not TINY.is_file():
            raise UserError("no default reader is installed: give --model RUN or FILE.onnx")
        return DEFAULT if DEFAULT.is_file() else TINY
    if str(path) == "tiny" and not path.exists():
        path = TINY
    found = path / "reader.onnx" if path.is_dir() else path
    if not found.is_file():
        raise UserError(f"{path}: no such reader; give a .onnx file, or a run's folder after recognizer export RUN")
    if found.suffix == ".safetensors":
        raise UserError(f"{path} holds weights for training; make a reader of them: recognizer export {path}")
    return found


class Reader:
    """A reader of one ONNX file.

    Args:
        model: a file, a run's folder, or None for the default reader.
        threads: of ONNX Runtime; one is fastest for pictures of this size.
        max_pixels: pictures with more are refused before they are decoded.

    Raises:
        UserError: no such file, or not a reader's.
    """

    def __init__(self, model: Path | None = None, threads: int = 1, max_pixels: int = MAX_PIXELS) -> None:
        path = find_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            kept = self._session.get_modelmeta().custom_metadata_map
            if "lookalike" not in kept:
                raise UserError(f"{path} is no reader's ONNX file: recognizer export has not written it")
            about = json.loads(kept["lookalike"])
            self.charset, self.frame = Charset(about["charset"]), Frame(**about["frame"])
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            if len(inputs) != 1 or len(outputs) != 1 or outputs[0].shape[-1] != self.charset.classes:
                raise UserError(f"{path}: its network does not fit its charset of {len(self.charset)} characters")
            if len(inputs[0].shape) != 4 or inputs[0].shape[2] != self.frame.height:
                raise UserError(f"{path}: its network does not fit its frame of {self.frame.height} rows")
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime raises its own types, all below Exception
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is no reader's ONNX file: {line}") from None
        self.path, self.about = path, cast("Mapping[str, Any]", about)
        self._max_pixels = max_pixels

    def open(self, source: bytes | Path | Image.Image) -> Grey:
        """A picture as this reader takes it, grey (H, W) uint8.

        Raises:
            PictureError: it cannot be opened.
        """
        return self.frame.fit(open_picture(source, None, self._max_pixels))

    def may_read(self, constraint: Constraint | None) -> None:
        """See that some picture can show what a constraint admits.

        Raises:
            UserError: its shortest text is too long for the widest picture that this reader takes.
        """
        if constraint is not None and self.about.get("head") != "fixed":
            constraint.must_fit(self.frame.max_width // STRIDE)

    def log_probabilities(self, greys: Sequence[Grey]) -> LogProbs:
        """Log probabilities (N, T, classes) of opened pictures of one width."""
        pictures = normalise(np.stack(greys))[:, None]
        return self._session.run(None, {"pictures": pictures})[0]  # type: ignore[no-any-return]

    def read(
        self,
        greys: Sequence[Grey],
        constraint: Constraint | None = None,
        n_best: int = 1,
        batch: int = 32,
    ) -> list[Reading]:
        """Read opened pictures, in order. What is read in one depends on it alone, not on the others.

        Args:
            constraint: what the text may be, held in decoding.
            n_best: with more than 1, a beam search, and the next most probable texts in `Reading.alternatives`.
        """
        by_width: dict[int, list[int]] = defaultdict(list)
        for i, grey in enumerate(greys):
            by_width[grey.shape[1]].append(i)
        found: dict[int, Reading] = {}
        for members in by_width.values():
            for k in range(0, len(members), batch):
                group = members[k : k + batch]
                log_probs = self.log_probabilities([greys[i] for i in group])
                if constraint is None and n_best == 1:
                    found.update(zip(group, readings_of(log_probs, self.charset), strict=True))
                else:
                    for i, own in zip(group, log_probs, strict=True):
                        found[i] = self._search(own, constraint, n_best)
        return [found[i] for i in range(len(greys))]

    def _search(self, log_probs: LogProbs, constraint: Constraint | None, n_best: int) -> Reading:
        texts = beam(log_probs, max(BEAM, 4 * n_best), n_best, constraint)
        if not texts:  # nothing that the constraint admits fits this picture's frames
            return Reading("", 0.0, ())
        ranked = [(self.charset.decode(ids), min(1.0, float(np.exp(p)))) for ids, p in texts]
        text, confidence = ranked[0]
        return Reading(
            text, confidence, tuple(zip(text, character_confidences(log_probs, texts[0][0]), strict=True)), None,
            tuple(ranked[1:]),
        )  # fmt: skip


def character_confidences(log_probs: LogProbs, ids: Sequence[int]) -> list[float]:
    """For each character of a text, its highest probability within its stretch of the text's best alignment.

    Args:
        log_probs: (T, classes).
    """
    frames = alignment(log_probs, ids)
    if frames is None:
        return [0.0] * len(ids)
    return [float(np.exp(log_probs[first:end, i].max())) for i, (first, end) in zip(ids, frames, strict=True)]


def readings_of(log_probs: LogProbs, charset: Charset, nlls: Iterable[float] | None = None) -> list[Reading]:
    """Best-path readings of log probabilities (N, T, classes), each with the exact probability of its whole text."""
    paths = greedy(log_probs)
    # float32 log probabilities can sum to a little over 1
    sure = np.exp(sequence_probabilities(log_probs, [path.ids for path in paths])).clip(0, 1).tolist()
    given = list(nlls) if nlls is not None else [None] * len(paths)
    return [
        Reading(text := charset.decode(path.ids), p, tuple(zip(text, path.confidences, strict=True)), nll)
        for path, p, nll in zip(paths, sure, given, strict=True)
    ]


def constraint_of(
    charset: Charset,
    characters: str | None = None,
    length: str | None = None,
    pattern: str | None = None,
    lexicon: Sequence[str] | None = None,
) -> Constraint | None:
    """What a text may be, from what the command line says; None where it says nothing.

    Raises:
        UserError: something that is not understood, or that admits no text.
    """
    parts = []
    if characters is not None:
        # of a named set, what the reader knows; a character that was typed out must be one that it knows
        known = "".join(c for c in NAMED.get(characters, "") if c in charset)
        if characters in NAMED and not known:
            raise UserError(f"--charset {characters}: the reader knows none of these, it reads {charset.characters}")
        parts.append(Constraint.characters(known or characters, charset))
    if length is not None:
        parts.append(Constraint.length(length, charset))
    if pattern is not None:
        parts.append(Constraint.pattern(pattern, charset))
    if lexicon is not None:
        parts.append(Constraint.lexicon(lexicon, charset))
    whole: Constraint | None = None
    for part in parts:
        whole = part if whole is None else whole & part
    return whole
