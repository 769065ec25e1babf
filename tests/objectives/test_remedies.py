"""What health advises for each objective does what it is advised for."""

from dataclasses import replace

import pytest

from preftune.objectives import OBJECTIVES
from preftune.objectives.remedies import facts_of_settings, remedies


def advised(objective, option):
    """The objective with the setting that is advised."""
    flag, value = option.split()
    if flag == "--objective":
        return OBJECTIVES[value]()
    name = flag.removeprefix("--objective.")
    return replace(objective, **{name: type(getattr(objective, name))(value)})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_remedy_changes_what_it_is_for(name):
    objective = OBJECTIVES[name]()
    found = remedies(objective)
    for option in (found.against_fall, found.against_overlap):
        assert advised(objective, option) != objective
        assert advised(objective, option).chosen_fall == "prevented"
    if objective.length_normalized:
        assert found.against_length == "--objective r-dpo"
    else:
        assert advised(objective, found.against_length).length_normalized


@pytest.mark.parametrize("name", ["ipo", "bnf", "orpo", "dil", "gspo", "simper"])
def test_an_objective_that_divides_by_the_length_is_not_told_to(name):
    assert "ln-dpo" not in remedies(OBJECTIVES[name]()).against_length


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"name": "ipo", "reduction": "sum"}, "--objective.reduction mean"),
        ({"name": "sft"}, "--objective.reduction sequence_mean"),
        ({"name": "dpo"}, "--objective ln-dpo"),
        ({"name": "cpo"}, "--objective simpo"),
    ],
)
def test_a_setting_of_its_own_comes_first_and_no_reference_is_asked_for(settings, option):
    assert facts_of_settings(settings)["against_length"] == option


@pytest.mark.parametrize(
    "settings", [{}, {"name": "nobody"}, {"name": "dpo", "beta": -1.0}, {"name": "dpo", "x": 1}]
)
def test_settings_that_make_no_objective_have_no_facts(settings):
    assert facts_of_settings(settings) == {}
