"""Whether the settings of rounds go together, before anything is loaded."""

from typing import Any

from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.rewards import COLUMNS, resolve_reward
from preftune.rewards.base import BuiltIn
from preftune.rewards.call import WeightedRewards
from preftune.rounds.options import named_places, named_reward, rewrite_template


def check_round_options(config: Any) -> None:
    """Refuse what would fail only in a later round, or has no effect."""
    check_range(config, "[0, 1)", "mix_share", "evolve")
    check_range(config, "[1, inf)", "eval_completions")
    if config.mix is None:
        refuse_idle(config, "without other data", "mix_share", do="Add --mix FILE, or leave it out")
    if not config.evolve:
        names = ("evolve_template", "near_misses")
        refuse_idle(config, "without evolved prompts", *names, do="Add --evolve SHARE, or leave it out")
    rewrite_template(config.evolve_template)
    if config.eval_prompts is None:
        names = ("eval_completions", "eval_reward", "pass_reward")
        refuse_idle(config, "without held-out prompts", *names, do="Add --eval_prompts FILE, or leave it out")
    places = named_places(config.reward)
    if config.base is None:
        named_reward(config.reward, config.model, None, None)
    elif not places & {"before", "first"}:
        refuse_idle(config, "with a reward that names neither first nor before", "base", do="Leave it out")
    judge = config.eval_reward or config.reward
    if config.eval_prompts is not None and named_places(judge):
        raise ConfigError(
            "Rounds cannot be compared by a reward that changes with them",
            got=judge,
            expected="a fixed reward of held-out completions",
            do="Add --eval_reward NAME",
        )
    if config.eval_reward is not None:
        resolve_reward(config.eval_reward)
    function = None if places else resolve_reward(config.reward)  # the models of a round are not there yet
    parts = (
        [part.function for part in function.parts] if isinstance(function, WeightedRewards) else [function]
    )
    needs = [
        name for part in parts if isinstance(part, BuiltIn) for name in part.needs if name not in COLUMNS
    ]
    if config.evolve and needs:
        raise ConfigError(
            "An evolved prompt has none of the columns that its parent has",
            got=f"reward {config.reward!r}, which reads the column {needs[0]}",
            expected="a reward that reads prompt and completion alone",
            do="Leave --evolve out, or name another reward",
        )
