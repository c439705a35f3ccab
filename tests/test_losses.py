"""The losses against what they are meant to be: torch's CTC, a sum over all alignments, and the paper's own formula."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recognizer.training.losses import (
    LOSSES,
    OF_POSITIONS,
    PLAIN,
    Options,
    aggregation,
    balanced_ctc,
    bce,
    ctc,
    evenly_spread,
    focal_bce,
    focal_ctc,
    guidance,
    guide,
    nll,
    positions,
    rarity,
    weighted_bce,
)

LOSS = pytest.mark.parametrize("name", LOSSES)


def case(n: int = 5, frames: int = 9, classes: int = 5, longest: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits, and targets of several lengths that all have an alignment; the padding is no blank."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, frames, classes, generator=rng)
    targets = torch.randint(1, classes, (n, longest), generator=rng)
    lengths = torch.tensor([1 + i % longest for i in range(n)])
    return logits, targets, lengths


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(k for k, _ in itertools.groupby(path) if k != 0)


@pytest.mark.parametrize("text", [(1,), (2, 1), (1, 1), (1, 2, 1), (2, 2, 2), (1, 1, 2)])
def test_nll_is_the_sum_over_all_alignments(text: tuple[int, ...]) -> None:
    logits = 2 * torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(len(text)))
    p = logits[0].double().softmax(-1)
    paths = itertools.product(range(3), repeat=5)
    total = sum(math.prod(float(p[t, k]) for t, k in enumerate(path)) for path in paths if collapsed(path) == text)
    found = nll(logits, torch.tensor([text]), torch.tensor([len(text)]))
    assert float(found) == pytest.approx(-math.log(total), abs=1e-5)


def test_a_label_without_an_alignment_has_an_infinite_nll() -> None:
    logits = torch.zeros(3, 3, 4)
    found = nll(logits, torch.tensor([[1, 2, 3, 1], [1, 1, 2, 0], [1, 2, 3, 0]]), torch.tensor([4, 3, 3]))
    assert found.isinf().tolist() == [True, True, False]
    assert float(found[2]) == pytest.approx(3 * math.log(4), abs=1e-5)  # one path of three frames


@LOSS
def test_a_loss_is_of_each_picture_alone(name: str) -> None:
    logits, targets, lengths = case()
    together = LOSSES[name](logits, targets, lengths, PLAIN)
    assert together.shape == (5,) and bool((together > 0).all())
    for i in range(5):
        own = targets[i : i + 1, : int(lengths[i])]  # neither padded nor beside others
        alone = LOSSES[name](logits[i : i + 1], own, lengths[i : i + 1], PLAIN)
        assert float(alone) == pytest.approx(float(together[i]), rel=1e-5)


@LOSS
def test_a_loss_falls_along_its_gradient(name: str) -> None:
    logits, targets, lengths = case()
    logits.requires_grad_()
    before = LOSSES[name](logits, targets, lengths, PLAIN).sum()
    (gradient,) = torch.autograd.grad(before, logits)
    before, logits = before.detach(), logits.detach()
    assert bool(gradient.isfinite().all())
    after = LOSSES[name](logits - 0.05 * gradient, targets, lengths, PLAIN).sum()
    assert float(after) < float(before) - 0.01 * float((gradient**2).sum())


@pytest.mark.parametrize("focal", [False, True])
def test_ctc_and_focal_ctc_with_gamma_0_are_torchs_ctc_a_character(focal: bool) -> None:
    logits, targets, lengths = case(seed=3)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = focal_ctc(ours, targets, lengths, Options(gamma=0.0)) if focal else ctc(ours, targets, lengths)
    flat = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])  # torch's other form of targets
    log_probs = theirs.log_softmax(-1).transpose(0, 1)
    expected = F.ctc_loss(log_probs, flat, torch.full((5,), 9), lengths, reduction="none") / lengths
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_ctc_counts_easy_pictures_less(gamma: float) -> None:
    logits, targets, lengths = case(n=8)
    logits /= 4
    plain = ctc(logits, targets, lengths)
    focal = focal_ctc(logits, targets, lengths, Options(gamma=gamma))
    for own, weighed in zip(plain.tolist(), focal.tolist(), strict=True):
        assert weighed == pytest.approx((1 - math.exp(-own)) ** gamma * own, rel=1e-5)
    order = plain.argsort()
    assert bool(((focal / plain)[order].diff() > 0).all())


def test_rare_characters_weigh_more_and_all_of_them_1_in_the_mean() -> None:
    texts = [(1, 1, 1), (1, 2), (1, 1, 3)]
    weights = rarity(texts, 5, beta=0.9)
    expected = torch.tensor([0.1 / (1 - 0.9**n) for n in (6, 1)])
    assert float(weights[2] / weights[1]) == pytest.approx(float(expected[1] / expected[0]), rel=1e-5)
    assert float(weights[2]) == float(weights[3]) == float(weights[4]), "what was never seen counts as seen once"
    assert np.mean([float(weights[i]) for text in texts for i in text]) == pytest.approx(1, rel=1e-5)
    assert rarity([(1, 2), (2, 1)], 3)[1:].tolist() == pytest.approx([1, 1])


def test_balanced_ctc_is_ctc_times_the_mean_weight_of_the_characters() -> None:
    logits, targets, lengths = case()
    plain = ctc(logits, targets, lengths)
    weights = torch.tensor([9.0, 0.5, 1.0, 2.0, 4.0])
    found = balanced_ctc(logits, targets, lengths, Options(rarity=weights))
    for i, n in enumerate(lengths.tolist()):
        assert float(found[i]) == pytest.approx(float(plain[i] * weights[targets[i, :n]].mean()), rel=1e-5)
    torch.testing.assert_close(balanced_ctc(logits, targets, lengths), plain)


# ------------------------------------------------------------------------------------------------- of a fixed head


def test_positions_are_every_other_frame_and_nothing_stands_behind_a_text() -> None:
    logits, targets, lengths = case(frames=9, longest=4)
    own, truth = positions(logits, targets, lengths)
    assert torch.equal(own, logits[:, ::2]) and truth.shape == own.shape == (5, 5, 5)
    assert bool((truth.sum(-1) == 1).all())
    for i, n in enumerate(lengths.tolist()):
        assert truth[i].argmax(-1).tolist() == targets[i, :n].tolist() + [0] * (5 - n)


def test_bce_is_torchs_and_the_others_are_it_where_they_change_nothing() -> None:
    logits, targets, lengths = case()
    own, truth = positions(logits, targets, lengths)
    plain = bce(logits, targets, lengths)
    for i in range(5):
        assert float(plain[i]) * 5 == pytest.approx(
            float(F.binary_cross_entropy(own[i].sigmoid(), truth[i], reduction="sum")), rel=1e-4
        )
    torch.testing.assert_close(weighted_bce(logits, targets, lengths, Options(pos_weight=1.0)), plain)
    torch.testing.assert_close(2 * focal_bce(logits, targets, lengths, Options(alpha=0.5, gamma=0.0)), plain)


def over_cautious(p: float) -> tuple[Tensor, Tensor, Tensor]:
    """A head of 8 positions and 63 classes that gives each class a chance of p, whatever stands there."""
    logits = torch.full((1, 15, 63), math.log(p / (1 - p)))
    return logits, torch.arange(1, 9)[None], torch.tensor([8])


def test_a_weight_of_3_raises_an_over_cautious_loss_by_2_8() -> None:
    """With p = .01 everywhere, the class that is there costs 4.605 nats and the 62 others .623 together."""
    plain, weighted = bce(*over_cautious(0.01)), weighted_bce(*over_cautious(0.01), Options(pos_weight=3.0))
    assert float(plain) == pytest.approx(-math.log(0.01) - 62 * math.log(0.99), rel=1e-4)
    assert float(weighted / plain) == pytest.approx(2.762, abs=0.001)
    assert 2.6 < float(weighted_bce(*over_cautious(1 / 63)) / bce(*over_cautious(1 / 63))) < 2.7
    bold = over_cautious(0.01)
    bold[0][0, ::2][range(8), range(1, 9)] = 6.0  # what stands there is found
    assert float(weighted_bce(*bold) / bce(*bold)) < 1.02


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_bce_is_the_papers_formula(gamma: float) -> None:
    logits, targets, lengths = case(n=3)
    own, truth = positions(logits, targets, lengths)
    found = focal_bce(logits, targets, lengths, Options(alpha=0.25, gamma=gamma))
    for i in range(3):
        total = 0.0
        for z, y in zip(own[i].flatten().tolist(), truth[i].flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-z))
            p, alpha = (p, 0.25) if y else (1 - p, 0.75)
            total -= alpha * (1 - p) ** gamma * math.log(p)
        assert float(found[i]) == pytest.approx(total / 5, rel=1e-4)


def test_a_gamma_that_adapts_is_5_for_what_is_unlikely_and_3_for_the_rest() -> None:
    p = torch.tensor([0.1, 0.19, 0.21, 0.9])
    found = Options(adaptive_gamma=True, gamma=1.0).easy(p, 2.0)
    torch.testing.assert_close(found, torch.tensor([0.9**5, 0.81**5, 0.79**3, 0.1**3]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_a_small_gamma_has_a_gradient_where_all_is_read(gamma: float) -> None:
    logits, targets, lengths = torch.full((1, 9, 5), -30.0), torch.tensor([[1, 2]]), torch.tensor([2])
    logits[0, :, 0] = 30.0
    logits[0, [0, 2], 0], logits[0, 0, 1], logits[0, 2, 2] = -30.0, 30.0, 30.0
    for loss in (focal_ctc, focal_bce):
        own = logits.clone().requires_grad_()
        loss(own, targets, lengths, Options(gamma=gamma)).sum().backward()
        assert own.grad is not None and bool(own.grad.isfinite().all())


def test_losses_of_positions_are_told_apart() -> None:
    assert set(LOSSES) >= OF_POSITIONS == {name for name in LOSSES if "bce" in name}


def literal_aggregation(logits: Tensor, text: list[int]) -> float:
    """Equation 6 of Xie et al. 2019, loop by loop; in nats a character in place of nats a frame."""
    frames, classes = logits.shape
    loss = 0.0
    for k in range(classes):
        wanted = text.count(k) if k else frames - len(text)
        seen = 0.0
        for t in range(frames):
            exponentials = [math.exp(float(logits[t, j])) for j in range(classes)]
            seen += exponentials[k] / sum(exponentials)
        loss -= wanted / frames * math.log(seen / frames)
    return loss * frames / len(text)


def test_aggregation_is_the_papers_formula() -> None:
    logits, targets, lengths = case(n=6, longest=5)
    targets[4] = torch.tensor([2, 2, 2, 1, 1])  # characters that come more than once
    found = aggregation(logits, targets, lengths)
    for i, n in enumerate(lengths.tolist()):
        assert float(found[i]) == pytest.approx(literal_aggregation(logits[i], targets[i, :n].tolist()), rel=1e-5)


def test_aggregation_is_least_where_each_class_is_seen_as_often_as_it_should() -> None:
    targets, lengths = torch.tensor([[1, 2, 2, 0]]), torch.tensor([3])
    shares = torch.tensor([5.0, 1.0, 2.0]) / 8  # of 8 frames: five blanks, a 1 and two 2
    logits = shares.log().expand(1, 8, 3).clone().requires_grad_()
    aggregation(logits, targets, lengths).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits.grad), atol=1e-6, rtol=0)


def test_likelihoods_are_taken_in_float32_whatever_the_network_computes_in() -> None:
    logits, targets, lengths = case(frames=60)
    half = logits.bfloat16()
    for loss in (nll, aggregation, *(partial(loss, options=PLAIN) for loss in LOSSES.values())):
        found = loss(half, targets, lengths)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(half.float(), targets, lengths))


def literal_even(logits: Tensor, text: list[int], first: int, last: int) -> float:
    """Each character on the frame at the middle of its share of the ink, and on the one before where there is room."""
    truth = [0] * len(logits)
    each = (last - first) / len(text)
    for i, c in enumerate(text):
        centre = int(first + (i + 0.5) * each)
        truth[centre] = c
        if each >= 4:
            truth[centre - 1] = c
    return -sum(float(row.log_softmax(-1)[c]) for row, c in zip(logits, truth, strict=True)) / len(text)


@pytest.mark.parametrize(("first", "last"), [(0, 20), (8, 20), (2, 11)])
def test_evenly_spread_is_cross_entropy_with_characters_where_the_ink_is(first: int, last: int) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 20, 6, generator=generator)
    targets = torch.tensor([[1, 2, 3, 4, 5], [2, 2, 0, 0, 0], [5, 1, 4, 0, 0]])
    lengths = torch.tensor([5, 2, 3])
    pictures = torch.zeros(3, 1, 32, 80)
    pictures[:, :, 10:20, 4 * first : 4 * last] = -2.0
    found = evenly_spread(logits, targets, lengths, pictures)
    for i, n in enumerate(lengths.tolist()):
        literal = literal_even(logits[i], targets[i, :n].tolist(), first, last)
        assert float(found[i]) == pytest.approx(literal, rel=1e-5)
    both = (aggregation(logits, targets, lengths) + found) / 2
    assert torch.allclose(guide(logits, targets, lengths, pictures), both)


def test_evenly_spread_bears_a_picture_without_ink() -> None:
    blank = torch.zeros(1, 1, 32, 80)
    found = evenly_spread(torch.zeros(1, 20, 6), torch.tensor([[1, 2]]), torch.tensor([2]), blank)
    assert found.isfinite().all()


def test_the_guide_leads_on_the_plateau_and_leaves_a_reader_alone() -> None:
    plateau = float(np.log(37))
    assert guidance(plateau, 37) == guidance(0.8 * plateau, 37) == 1.0
    assert guidance(0.55 * plateau, 37) == pytest.approx(0.5)
    assert guidance(0.3 * plateau, 37) == guidance(0.01, 37) == 0.0
