"""Checks across the settings of an on-policy run; each takes the sections that it compares."""

from collections.abc import Mapping

from preftune.errors import ConfigError, refuse_idle
from preftune.model.adapters import LoraOptions
from preftune.objectives import Objective, objective_name
from preftune.sampling.client import ServerOptions
from preftune.sampling.prefix import PrefixOptions
from preftune.sampling.sample import SampleOptions
from preftune.train.onpolicy.collect import CollectOptions
from preftune.types import Rewards


def check_sampling(
    objective: Objective, sampling: SampleOptions, collect: CollectOptions, unjudged: bool
) -> None:
    """Whether an objective can learn from completions that are drawn in this way."""
    name = objective_name(objective)
    wants_ratio = weighs_ratios(objective)
    if wants_ratio and collect.data_share:
        raise ConfigError(
            f"{name} needs to know how probable a completion was when it was drawn",
            got=f"completions of the data (collect.data_share {collect.data_share:g})",
            do="Set --source on-policy without --collect.data_share",
        )
    if wants_ratio and (sampling.truncated or sampling.temperature == 0):
        raise ConfigError(
            f"{name} weighs completions by importance ratios, which truncated sampling makes wrong",
            got="top_k, top_p, min_p or temperature 0",
            do="Leave these out; a temperature above 0 is fine: policy and samples have one distribution",
        )
    if unjudged:
        return
    count = sampling.num_completions + (0 if collect.opponent == "two-sided" else collect.num_opponents)
    if count < (objective.least_completions if objective.signal is Rewards else 2):
        raise ConfigError(
            f"{name} compares the completions of a prompt with each other",
            got=f"sampling.num_completions {sampling.num_completions}",
            expected="at least 2",
            do="Set --sampling.num_completions 4",
        )


def check_continuation(prefix: PrefixOptions, collect: CollectOptions, unjudged: bool) -> None:
    """Completions that share a prompt in training continue from the same beginning."""
    if not prefix.column:
        return
    if unjudged or collect.opponent != "none":
        raise ConfigError(
            "Only scored samples of the policy continue a beginning",
            got=f"prefix.column {prefix.column} with "
            + (
                "samples next to the pairs of the data"
                if unjudged
                else f"collect.opponent {collect.opponent}"
            ),
            do="Leave one out",
        )


def weighs_ratios(objective: Objective) -> bool:
    """Whether the objective compares the policy with the one that drew the completions."""
    return bool(objective.needs & {"behaviour_logp", "behaviour_value"})


def check_opponent(objective: Objective, collect: CollectOptions) -> None:
    """Check which other model may answer prompts."""
    name, opponent = objective_name(objective), collect.opponent
    expected = objective.opponents
    if not expected:
        raise ConfigError(
            f"{name} needs pairs of the data in addition to the policy's samples",
            got="source on-policy",
            expected="source hybrid, with pairs in --data and without --reward",
            do="Set --source hybrid",
        )
    if opponent not in expected:
        raise ConfigError(
            f"{name} has another use of opponents",
            got=f"collect.opponent {opponent}",
            expected=" or ".join(expected),
            do=f"Set --collect.opponent {expected[0]}",
        )
    if opponent == "mixture" and collect.opponent_share < 0 and objective.signal is Rewards:
        raise ConfigError(
            f"{name} plays against a mixture between policy and reference",
            got=f"collect.opponent_share {collect.opponent_share:g}",
            expected="above 0",
        )
    if opponent != "none" and collect.data_share and objective.signal is Rewards:
        raise ConfigError(
            "The completions in the data have no opponent",
            got=f"collect.data_share {collect.data_share}",
            do="Leave it or collect.opponent out",
        )
    if opponent != "none" and objective.signal is Rewards and collect.selection is not None:
        raise ConfigError(
            f"A selection has no place between win rates and {name}",
            got=collect.selection,
            do="Leave out --collect.selection",
        )


def check_server(
    server: ServerOptions, sampling: SampleOptions, lora: LoraOptions, wants_ratio: bool
) -> None:
    """A server must return what the trainer can be compared with."""
    if lora.rank > 0:
        refuse_idle(
            server,
            "in training: each draw is from the adapter that was just loaded",
            "model",
            prefix="server.",
        )
    if server.api not in ("auto", "tokens"):
        raise ConfigError(
            "Training on what a server draws needs its token ids",
            got=f"server.api {server.api}",
            expected="tokens",
        )
    changed = sampling.temperature != 1 or sampling.truncated
    if changed and (wants_ratio or server.logprobs == "processed"):
        raise ConfigError(
            "A server returns log-probabilities of the model or of the distribution that it samples from, and this run needs both",
            got="a temperature other than 1, top_k, top_p or min_p",
            expected="temperature 1 without truncation",
            do="Leave them out, or draw in this process",
        )


def check_max_samples(
    max_samples: int | None, sampling: SampleOptions, collect: CollectOptions, batch_size: int
) -> None:
    """Whether a limit on completions reaches to the first step and can be kept."""
    if max_samples is None:
        return
    each = sampling.num_completions + collect.num_opponents
    first = (collect.lag + 1) * (collect.prompts or batch_size) * each
    if max_samples < first:
        raise ConfigError(
            "max_samples does not reach to the first step",
            got=max_samples,
            expected=f"at least {first} completions",
            do="Raise it, or lower --batch_size or --collect.prompts",
        )
    if collect.fill:
        raise ConfigError(
            "collect.fill draws until a collection is full, which max_samples cannot hold to",
            got=f"max_samples {max_samples}",
            do="Leave one out",
        )


def check_unjudged(
    objective: Objective, reward: str | None, collect: CollectOptions, environment: str | None
) -> None:
    """Source hybrid for an objective that reads samples of the policy without a reward: each step has pairs of
    the data with samples of the same prompts.
    """
    name = objective_name(objective)
    if environment is not None:
        raise ConfigError(
            f"{name} compares samples with pairs of single answers",
            got=f"environment {environment}",
            do="Leave it out",
        )
    if reward is not None:
        raise ConfigError(
            f"{name} uses no reward: its samples only show what the policy writes",
            got=reward,
            do="Leave it out",
        )
    if weighs_ratios(objective):
        raise ConfigError(
            f"{name} needs to know how probable a completion was when it was drawn",
            got="pairs of the data",
            do="Leave out the term with importance ratios",
        )
    judged = ("opponent", "opponent_share", "data_share", "selection", "selection_settings", "fill")
    judged += ("reward_timeout_s", "reward_process")
    refuse_idle(collect, f"with {name}, whose samples nobody judges", *judged, prefix="collect.", got=name)


def check_extragradient(
    objective: Objective,
    collect: CollectOptions | None,
    batch_size: int,
    *,
    has_limits: bool,
    counts: Mapping[str, int | None],
) -> None:
    """One update takes two steps. Settings that count steps must be even, and each half needs its own samples.
    `collect` is None for a run that does not sample; `has_limits`: of samples or minutes.
    """
    fresh = (
        collect is not None
        and collect.prompts in (None, batch_size)
        and not collect.lag
        and not collect.replay
        and collect.epochs == 1
    )
    if not fresh:
        raise ConfigError(
            "optim.extragradient wants samples of each half step",
            got="data that do not follow the policy",
            expected="--source on-policy with a collection for each step",
            do="Leave out collect.prompts, epochs, replay and lag",
        )
    if objective.needs & {"behaviour_logp", "behaviour_value"}:
        raise ConfigError(
            "optim.extragradient takes the step that samples were drawn after back, which makes ratios wrong",
            got=objective_name(objective),
            expected="an objective without importance ratios",
        )
    if has_limits:
        raise ConfigError(
            "optim.extragradient makes one step of two, between which a run cannot end",
            got="max_samples or max_minutes",
            expected="max_steps",
        )
    for name, value in counts.items():
        if value and value % 2:
            raise ConfigError(
                f"{name} is odd, and optim.extragradient makes one step of two",
                got=value,
                expected="an even number",
            )
