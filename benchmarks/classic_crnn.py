"""The reference that this project comes from: a classic CRNN (Shi et al. 2015), 8 M parameters, 32 x 100.

    python benchmarks/classic_crnn.py pretrain --out runs/classic --pictures 20000 --minutes 60
    python benchmarks/classic_crnn.py finetune --from runs/classic --data DIR --test DIR --limit 300
    python benchmarks/classic_crnn.py speed

`pretrain` draws pictures with the `captcha` library (62 classes, 4 to 6 characters) and trains on them for as many
passes as the minutes of CPU time allow; `finetune` goes on with real labels; `speed` compares its training images
a second with those of `tiny`, step by step in one run on one thread. It shares the project's batches and variation, and
none of its other ideas.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from augment.synthesize import random_texts, requests_for_texts, synthesize
from recognizer.charset import Charset
from recognizer.images import Frame
from recognizer.readings import Scores
from recognizer.samples import Sample, read_manifest, split
from recognizer.training.batches import Pictures, Plan, Variation, collate, vary
from recognizer.training.losses import ctc
from recognizer.training.model import Network

FRAME = Frame(32, 100, 100)  # every picture is brought to 32 x 100, and padded to 112


class ClassicCrnn(nn.Module):
    """VGG trunk, two BiLSTM-256; pictures (N, 1, 32, W) to logits (N, W / 4 - 1, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()

        def conv(i: int, o: int, kernel: int = 3, norm: bool = False) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(i, o, kernel, 1, 1 if kernel == 3 else 0)]
            return [*layers, *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU()]

        self.trunk = nn.Sequential(
            *conv(1, 64), nn.MaxPool2d(2), *conv(64, 128), nn.MaxPool2d(2),
            *conv(128, 256, norm=True), *conv(256, 256), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            *conv(256, 512, norm=True), *conv(512, 512), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            *conv(512, 512, 2, norm=True),
        )  # fmt: skip
        self.rnn = nn.LSTM(512, 256, num_layers=2, bidirectional=True, batch_first=True)
        self.classify = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x).squeeze(2).transpose(1, 2)
        return self.classify(self.rnn(features)[0])


def train(
    model: ClassicCrnn,
    data: Pictures,
    held: Pictures,
    charset: Charset,
    steps: int,
    minutes: float,
    rate: float,
    half: bool,
) -> tuple[dict[str, Tensor], int]:
    """Train until `steps` or `minutes` are over; gives the best weights on the held-out part, and the steps made."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    plan = Plan(data.widths, len(data), 32, 0.5, 0)
    began, best, kept, every = time.process_time(), -1.0, {}, max(1, min(steps // 20, 100))
    recent: list[float] = []
    for step in range(steps):
        done = max(step / steps, (time.process_time() - began) / (60 * minutes))
        for group in optimizer.param_groups:  # a cycle over whichever ends first
            group["lr"] = rate * (done / 0.2 if done < 0.2 else max(0.0, (1 - done) / 0.8))
        batch = collate([data[i] for i in plan.indices(step)])
        model.train()
        pictures = vary(batch.pictures, Variation(), torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):  # twice the pictures in the time, where it is native
            logits = model(pictures)
        loss = ctc(logits, batch.targets, batch.lengths).mean()
        recent.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        last = step + 1 == steps or done >= 1
        if (step + 1) % every == 0 or last:
            scores = evaluate(model, held, charset)
            print(
                f"step {step + 1} of {steps}, {time.process_time() - began:.0f} s, "
                f"loss {statistics.mean(recent[-50:]):.3f}, held out {scores.exact:.3f}", flush=True,
            )  # fmt: skip
            if scores.exact_ignoring_case >= best:
                best, kept = scores.exact_ignoring_case, {k: v.clone() for k, v in model.state_dict().items()}
        if last:
            return kept, step + 1
    return kept, steps


@torch.inference_mode()
def evaluate(model: ClassicCrnn, pictures: Pictures, charset: Charset) -> Scores:
    model.eval()
    pairs = []
    for k in range(0, len(pictures), 128):
        items = [pictures[i] for i in range(k, min(k + 128, len(pictures)))]
        for row, sample in zip(model(collate(items).pictures).argmax(-1), pictures.samples[k : k + 128], strict=True):
            run = torch.unique_consecutive(row)
            pairs.append((sample.text, charset.decode(run[run > 0].tolist())))
    return Scores.of(pairs)


def opened(samples: list[Sample], charset: Charset) -> Pictures:
    return Pictures(samples, charset, FRAME, 16_000_000)


def pretrain(out: Path, pictures: int, minutes: float, half: bool) -> None:
    charset = Charset.named("letters+digits")
    drawn = out.with_name(out.name + "-pictures")
    if not drawn.exists():
        texts = random_texts(charset, (4, 5, 6), pictures, 1)
        synthesize("captcha", {}, requests_for_texts(texts, (160, 60), 0), drawn)
    kept, held = split(read_manifest(drawn).samples, (0.98, 0.02))
    model = ClassicCrnn(charset.classes)
    began = time.process_time()
    steps = 60 * pictures // 32
    state, steps = train(model, opened(kept, charset), opened(held, charset), charset, steps, minutes, 1e-3, half)
    model.load_state_dict(state)
    scores = evaluate(model, opened(held, charset), charset)
    torch.save(state, out)
    about = {
        "pictures": pictures, "steps": steps, "batch": 32, "cpu_minutes": (time.process_time() - began) / 60,
        "held_out": scores.to_dict(),
    }  # fmt: skip
    print(json.dumps(about))
    out.with_suffix(".json").write_text(json.dumps(about) + "\n")


def finetune(start: Path | None, data: Path, test: Path, limit: int, minutes: float, seed: int, half: bool) -> None:
    torch.manual_seed(seed)
    samples = list(read_manifest(data).first(limit))
    tested = list(read_manifest(test))
    kept, held = split(samples, (0.9, 0.1))
    charset = Charset.of(s.text for s in samples)
    model = ClassicCrnn(charset.classes)
    if start is not None:
        state = torch.load(start, weights_only=True)
        old = {c: i for i, c in enumerate(Charset.named("letters+digits").characters, 1)}
        rows = [0, *(old[c] for c in charset.characters)]
        for name in ("classify.weight", "classify.bias"):
            state[name] = state[name][rows]
        model.load_state_dict(state)
    state, steps = train(
        model, opened(kept, charset), opened(held, charset), charset, 60 * limit // 32, minutes, 5e-4, half
    )
    model.load_state_dict(state)
    scores = evaluate(model, opened(tested, charset), charset)
    print(json.dumps({"labels": limit, "seed": seed, "steps": steps, "from": str(start), "test": scores.to_dict()}))


def speed(rounds: int = 15) -> None:
    """Training steps of both on the same batch in turn: the ratio is of medians within one run."""
    torch.set_num_threads(1)
    charset = Charset.named("letters+digits")
    crnn = ClassicCrnn(charset.classes)
    tiny = Network("tiny", ("conv",), charset.classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    targets, lengths = torch.randint(1, charset.classes, (32, 5)), torch.full((32,), 5)
    times: dict[str, list[float]] = {"classic": [], "tiny": []}
    models = {"classic": (crnn, lambda x: crnn(x), 100), "tiny": (tiny, lambda x: tiny(x)["conv"], 96)}
    optimizers = {name: torch.optim.AdamW(model.parameters()) for name, (model, *_) in models.items()}
    for k in range(rounds + 2):
        for name, (_, forward, width) in models.items():
            x = torch.randn(32, 1, 32, width)
            began = time.process_time()
            ctc(forward(vary(x, Variation(), torch.Generator().manual_seed(k))), targets, lengths).mean().backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            if k > 1:
                times[name].append(time.process_time() - began)
    rate = {name: 32 / statistics.median(seconds) for name, seconds in times.items()}
    size = {name: sum(p.numel() for p in model.parameters()) for name, (model, *_) in models.items()}
    print(json.dumps({"images_per_cpu_second": rate, "ratio": rate["tiny"] / rate["classic"], "parameters": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("pretrain")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--pictures", type=int, default=20_000)
    one.add_argument("--minutes", type=float, default=60)
    one.add_argument("--bf16", action="store_true")
    two = commands.add_parser("finetune")
    two.add_argument("--from", dest="start", type=Path)
    two.add_argument("--data", type=Path, required=True)
    two.add_argument("--test", type=Path, required=True)
    two.add_argument("--limit", type=int, required=True)
    two.add_argument("--minutes", type=float, default=30)
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--bf16", action="store_true")
    commands.add_parser("speed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "pretrain":
        pretrain(given.out, given.pictures, given.minutes, given.bf16)
    elif given.command == "finetune":
        finetune(given.start, given.data, given.test, given.limit, given.minutes, given.seed, given.bf16)
    else:
        speed()


if __name__ == "__main__":
    main()
