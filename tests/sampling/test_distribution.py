"""The distribution drawn from, the randomness and the draw, against other implementations and by hand."""

import math

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from preftune.sampling.distribution import log_distribution, pick, uniforms

LOGITS = torch.randn(7, 3000, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0, "top_k": 20},
        {"top_p": 0.7},
        {"top_p": 0.999, "temperature": 2.0},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
        {"top_k": 5000},
        {"top_p": 1e-9},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers_warpers(settings):
    scores = LOGITS.clone()
    warpers = (
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    )
    for name, warper in warpers:
        if name in settings:
            scores = warper(settings[name])(None, scores)
    got = log_distribution(LOGITS, **settings)
    assert torch.equal(got.isinf(), scores.isinf())
    torch.testing.assert_close(got, scores.log_softmax(1))
    if "top_p" in settings and settings["top_p"] > 0.99:
        assert (got[0] > -math.inf).sum() > 1024  # more than the few that are sorted first


def test_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert log_distribution(logits, top_k=1).exp().tolist() == [[1.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(
        log_distribution(logits, top_p=0.6).exp(), torch.tensor([[2 / 3, 1 / 3, 0.0, 0.0]])
    )
    torch.testing.assert_close(
        log_distribution(logits, min_p=0.4).exp(), torch.tensor([[2 / 3, 1 / 3, 0.0, 0.0]])
    )
    # two tokens are as probable as the third, the last that is kept: so is the fourth
    torch.testing.assert_close(
        log_distribution(logits, top_k=3).exp(), torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    )
    # squares of the probabilities are 1/4, 1/16, 1/64, 1/64, in all 22/64
    torch.testing.assert_close(
        log_distribution(logits, temperature=0.5).exp(), torch.tensor([[16.0, 4.0, 1.0, 1.0]]) / 22
    )


def test_the_draw_inverts_the_cumulative_distribution():
    p = LOGITS.softmax(1)
    p[:, 10:600] = 0.0
    random = np.random.default_rng(0)
    for _ in range(200):
        u = random.random(len(p))
        cumulative = p.double().numpy().cumsum(1)
        expected = [
            np.searchsorted(row, x * row[-1], side="right") for row, x in zip(cumulative, u, strict=True)
        ]
        assert pick(p, torch.from_numpy(u)).tolist() == expected


@pytest.mark.parametrize("width", [1, 3, 256, 257, 1000])
def test_the_ends_of_the_distribution(width):
    """The smallest and the largest number pick the first and the last token that can be drawn, never one of
    probability 0.
    """
    last = max(0, width - 2)
    p = torch.zeros(3, width)
    p[0, last], p[1, 0] = 1.0, 1e-30
    p[2] = 1.0 / width
    for u, expected in ((0.0, [last, 0, 0]), (1 - 2.0**-53, [last, 0, width - 1])):
        assert pick(p, torch.full((3,), u, dtype=torch.float64)).tolist() == expected


def test_the_numbers_depend_on_seed_key_and_sample_alone():
    first = uniforms(5, 7, 2, 40)
    assert first.tolist() == uniforms(5, 7, 2, 40).tolist()
    assert first[:9].tolist() == uniforms(5, 7, 2, 9).tolist()  # a smaller budget draws the same beginning
    others = [
        uniforms(*which, 40)
        for which in ((6, 7, 2), (5, 8, 2), (5, 7, 3), (5, 2**64 - 1, 2), (2**62 - 1, 7, 2))
    ]
    every = np.concatenate([first, *others])
    assert len(set(every.tolist())) == len(every) and every.min() >= 0 and every.max() < 1


def test_the_numbers_stay_what_they_were():
    """A run that is resumed under a later numpy must draw the same."""
    assert uniforms(1, 2, 3, 3).tolist() == [0.9337443921724664, 0.39039256465951866, 0.7000775509398287]


def test_the_numbers_are_uniform_and_streams_are_independent():
    table = np.stack([uniforms(0, key, sample, 50) for key in range(40) for sample in range(10)])
    counts = np.bincount((table.ravel() * 20).astype(int), minlength=20)
    expected = table.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square of 19 degrees at p = 0.001
    correlation = np.corrcoef(table)[np.triu_indices(len(table), 1)]
    assert abs(correlation.mean()) < 0.002 and abs(correlation.std() - 1 / math.sqrt(50)) < 0.005
