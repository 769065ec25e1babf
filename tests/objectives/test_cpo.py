"""CPO: beta (lp_w - lp_l) = .1 * 4, and likelihood."""

import torch

from preftune.objectives.cpo import CPO
from preftune.objectives.rpo import RPO
from preftune.types import TokenScores
from tests.objectives.golden import check_pair, log_sigma, random_scores, sigma


def test_golden():
    """log(1 + e^-.4) + 10 / 5."""
    push = 0.1 * sigma(-0.4)
    check_pair(CPO(), value=2.513015, slopes=(-push - 0.2, push), rewards=(-1.0, -1.4), extra={"nll": 2.0})


def test_golden_with_the_sum_of_the_paper():
    push = 0.1 * sigma(-0.4)
    check_pair(
        CPO(nll_weight=0.3, nll_scale="sum"),
        value=-log_sigma(0.4) + 3.0,
        slopes=(-push - 0.3, push),
        rewards=(-1.0, -1.4),
        extra={"nll": 10.0},
    )


def test_it_is_rpo_with_a_uniform_reference():
    """A reference of log-probability 0 everywhere leaves the log-probabilities."""
    scores, pairs = random_scores()
    uniform = TokenScores(logp=scores.logp, ref_logp=torch.zeros_like(scores.logp), lengths=scores.lengths)
    alone = TokenScores(logp=scores.logp, lengths=scores.lengths)
    torch.testing.assert_close(
        CPO(beta=0.3, nll_weight=0.4)(alone, pairs).per_unit,
        RPO(beta=0.3, nll_weight=0.4)(uniform, pairs).per_unit,
    )
