"""SimPER: inverse perplexities e^-2 and e^-1.75."""

import math

from preftune.objectives.simper import SimPER
from tests.objectives.golden import check_pair


def test_golden():
    chosen, rejected = math.exp(-2), math.exp(-1.75)
    check_pair(SimPER(), value=0.038439, slopes=(-chosen / 5, rejected / 8), rewards=(chosen, rejected))
