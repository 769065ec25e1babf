"""The set-up in stages: read the data, load the models, make the source and the anchors, check step 0. Each stage
takes only the settings that it needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from preftune.data.options import DataOptions
from preftune.data.prepare import Prepared
from preftune.data.render import Renderer, make_renderer
from preftune.data.store import JoinedGroups
from preftune.environments.checks import check_tool_columns
from preftune.environments.resolve import resolve_environment
from preftune.environments.rollout import Rollouts, make_rollouts
from preftune.model.device import device_note, pick_device
from preftune.model.layout import LayoutOptions
from preftune.model.limits import Limits, shared_limits
from preftune.model.load import check_same_tokenizer, load_tokenizer, resolve_model
from preftune.model.policy import Policy, micro_batches, score_groups
from preftune.model.proof import check_attention
from preftune.model.reference import REFERENCE_SCORES, ReferenceOptions, check_equal
from preftune.model.whole_model import LoadOptions
from preftune.objectives import Objective
from preftune.objectives.base import couples_mismatched, smallest_step
from preftune.progress import Reporter
from preftune.rewards import COLUMNS, AnyReward, check_columns, resolve_reward
from preftune.rewards.questions import shared_columns
from preftune.sampling.client import ServerOptions
from preftune.sampling.prefix import check_prefix
from preftune.sampling.sample import Blend
from preftune.train.anchors import TOLERANCE, AnchorBuilder, Anchors
from preftune.train.batches import ANCHORED, check_prompts, mismatched_groups, with_mismatched
from preftune.train.best import BestWeights
from preftune.train.budget import Budget
from preftune.train.filters import filter_pairs
from preftune.train.groups import DataPlan, ReadData, read_completions, read_data, within
from preftune.train.identity import Identity, check_same_inputs, identify
from preftune.train.models import load_models
from preftune.train.onpolicy.collect import CollectOptions, Sampler
from preftune.train.onpolicy.follower import Follower
from preftune.train.onpolicy.source import CollectPlan, OnPolicySource, PromptData
from preftune.train.optim import OptimOptions, schedule_line
from preftune.train.optimizers import check_optimizer, hidden_matrices, make_optimizer
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE, Processes
from preftune.train.recommended import unusual_settings
from preftune.train.sources import OfflineSource
from preftune.types import Group


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """A run, ready to start."""

    config: TrainConfig
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    source: OfflineSource | OnPolicySource
    eval_groups: Sequence[Group]
    anchors: Anchors
    optimizer: torch.optim.Optimizer
    prepared: Prepared
    budget: Budget
    saved: torch.dtype  # of the weights in final/
    processes: Processes

    @cached_property
    def best(self) -> BestWeights | None:
        """The best weights so far, where the run keeps them."""
        if not self.config.keep_best:
            return None
        folder = Path(self.config.output)
        return BestWeights(
            metric=self.config.best_metric,
            patience=self.config.early_stopping_patience,
            folder=folder / "best",
            checkpoints=self.config.keep_checkpoints,
            processes=self.processes,
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, if no other limit comes first."""
        return self.budget.steps

    @property
    def eval_every(self) -> int:
        """Steps between evaluations on held-out data."""
        steps = self.config.eval_every or max(1, self.num_steps // 10)
        return steps + steps % 2 if self.config.optim.extragradient else steps

    @property
    def watches_groups(self) -> bool:
        """Whether held-out data are groups to learn from, and not prompts alone."""
        return not self.config.draws or self.config.unjudged

    @property
    def samples(self) -> OnPolicySource | None:
        """The source, if it draws from the policy."""
        return self.source if isinstance(self.source, OnPolicySource) else None


def prompt_data(data: ReadData, tokenizer: PreTrainedTokenizerBase) -> PromptData:
    """Data of an on-policy run."""
    return PromptData(
        prompts=data.train,
        records={record.origin: record for record in (*data.prepared.records, *data.held_records)},
        groups=read_completions(data.plan, tokenizer, data.train),
    )


def _opponents(options: CollectOptions, writer: Blend | None) -> tuple[Blend, ...]:
    """The opponents: the reference, or mixtures of reference and policy."""
    if options.opponent == "none":
        return ()
    assert writer is not None, "an on-policy reference is live or the policy without its adapter"
    share = options.opponent_share
    shares = {"reference": (1.0,), "mixture": (share,), "two-sided": (-share, share)}[options.opponent]
    return tuple(replace(writer, share=one) for one in shares)


def check_start(job: TrainingJob) -> float | None:
    """Step 0: policy = reference, so every log-ratio is 0 and DPO's loss is ln 2. Returns the largest
    difference seen.

    Nothing to check with another model as reference, without a reference, and where the objective has no need
    of it.
    """
    config, reference = job.config, job.anchors.reference
    if reference is None or config.reference.model is not None or isinstance(job.source, OnPolicySource):
        return None
    if not config.objective.needs & REFERENCE_SCORES:
        return None
    few = job.source.take(1)[:4]
    worst = 0.0
    for _, part in micro_batches(job.policy, few, config.layout):
        worst = max(
            worst,
            check_equal(
                reference(part),
                score_groups(job.policy, part, config.layout),
                part,
                TOLERANCE[config.precision],
                "At step 0 the policy is not its reference",
                "Please report this with the model's name",
            ),
        )
    return worst


def offline_source(
    objective: Objective, groups: Sequence[Group], batch_size: int, seed: int
) -> OfflineSource:
    """The groups of a file, in steps that the objective can learn from."""
    check_prompts(objective, groups)
    return OfflineSource(groups=groups, batch_size=batch_size, seed=seed, least=smallest_step(objective))


def scored_groups(
    objective: Objective, source: OfflineSource, held: Sequence[Group], num_steps: int
) -> Sequence[Group]:
    """Every group that anchors will score: of training if the objective needs them, and of
    evaluation.
    """
    if not objective.needs & ANCHORED:
        return held
    groups = JoinedGroups(first=source.visited(num_steps), second=held)
    if not couples_mismatched(objective):
        return groups
    mismatched = [group for step in range(1, num_steps + 1) for group in mismatched_groups(source.take(step))]
    return JoinedGroups(first=groups, second=[*mismatched, *mismatched_groups(held)])


def anchored_scores(objective: Objective, collect: CollectOptions, has_held: bool) -> frozenset[str]:
    """Scores needed from frozen models: by the objective, by an opponent, and by evaluations, which report
    log-ratios of held-out data.
    """
    needs = objective.needs & ANCHORED
    watched = has_held and objective.trains == "policy"
    return needs | {"ref_logp"} if watched or collect.opponent != "none" else needs


def shared_tokenizer(model: str, options: ReferenceOptions, loading: LoadOptions) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, which the other models of the run must share."""
    tokenizer = load_tokenizer(resolve_model(model), loading)
    for other in (options.model, options.contrast_positive, options.contrast_negative):
        if other is not None:
            check_same_tokenizer(model, other, loading)
    return tokenizer


def read_within_limits(
    plan: DataPlan, limits: Limits, tokenizer: PreTrainedTokenizerBase, report: Reporter
) -> ReadData:
    """Read the training and held-out data, in rows that the model has positions for."""
    limited = within(plan, limits)
    if limited is not plan:
        report.note(
            f"rows.max_length: {limits.positions}, the positions of the model, instead of {plan.rows.max_length}"
        )
    data = read_data(limited, tokenizer)
    report.note("\n".join(data.lines))
    return data


def check_reward(
    reward: AnyReward | None, data: ReadData, plan: CollectPlan, rollouts: Rollouts | None
) -> None:
    """Refuse a reward that reads columns which the prompts do not have, or rewards steps in vain; and a column of
    beginnings or of tools that is not there.
    """
    records = [*data.prepared.records, *data.held_records]
    if reward is not None:
        plan.step_use.check_reward(reward, plan.reward)
        check_prefix(data.prepared.records if plan.prefix.column else (), plan.prefix)
        check_columns(reward, plan.reward, shared_columns(records) | set(COLUMNS))
    if rollouts is not None:
        check_tool_columns(rollouts.steps.named, records)


def _optimizer(
    policy: Policy, options: OptimOptions, seed: int, objective: Objective
) -> torch.optim.Optimizer:
    """The optimizer, with a separate learning rate for a critic."""
    weights = policy.trainable()
    critic = frozenset(
        name for name in weights if name.startswith(("value_head.", "critic.")) and "value" in objective.needs
    )
    return make_optimizer(weights, options, seed, hidden_matrices(policy.model, weights), critic)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Supply:
    """What a run learns from: groups, the scores of frozen models on them, and for how many steps."""

    source: OfflineSource | OnPolicySource
    anchors: Anchors
    budget: Budget


def _offline_supply(
    data: ReadData,
    batch_size: int,
    budget_of: Callable[[int], Budget],
    builder: AnchorBuilder,
    needs: frozenset[str],
    rehearses: bool,
) -> _Supply:
    """The completions of a file; `budget_of` is called with the steps of an epoch."""
    objective = data.plan.objective
    source = offline_source(objective, data.train, batch_size, data.plan.seed)
    budget = budget_of(source.steps_per_epoch)
    if rehearses:
        scored = with_mismatched(objective, source.take(1))
    else:
        scored = scored_groups(objective, source, data.held, budget.steps)
    anchors = replace(builder, groups=scored).build(needs)
    return _Supply(source=source, anchors=anchors, budget=budget)


def _on_policy_supply(
    reward: AnyReward | None,
    renderer: Renderer,
    rollouts: Rollouts | None,
    prompts: PromptData,
    plan: CollectPlan,
    follower: Follower | None,
    budget_of: Callable[[int], Budget],
    builder: AnchorBuilder,
    needs: frozenset[str],
) -> _Supply:
    """The policy's own completions, from this process or from a server that follows the policy."""
    anchors = builder.build(needs)
    sampler = Sampler(
        renderer=renderer,
        sampling=plan.sampling,
        reward=reward,
        reward_name=plan.reward,
        timeout_s=plan.options.reward_timeout_s,
        engine=builder.models.engine,
        prefix=plan.prefix,
        step_use=plan.step_use,
        rollouts=rollouts,
    )
    source = OnPolicySource(
        policy=builder.policy,
        judge=sampler,
        material=prompts,
        plan=plan,
        report=builder.report,
        follower=follower,
        opponents=_opponents(plan.options, anchors.writer),
        processes=builder.processes,
    )
    budget = source.within(budget_of(source.steps_per_epoch))
    return _Supply(source=source, anchors=anchors, budget=budget)


def make_follower(
    options: ServerOptions, builder: AnchorBuilder, output: Path, restart_s: float
) -> Follower | None:
    """The connection that sends the policy's weights to a sampling server, if there is a server."""
    if not options.url:
        return None
    folder = output / "server"
    return Follower(options, builder.policy, folder, builder.report, builder.processes, restart_s)


def _check_device(layout: LayoutOptions, device: str, report: Reporter) -> None:
    check_attention(layout, pick_device(device))
    if note := device_note(device):
        report.note(note)


def _set_up_lines(supply: _Supply, objective: Objective, optim: OptimOptions, rank: int) -> list[str]:
    """The steps, the schedule, and settings that are unusual for the objective."""
    steps = supply.budget.line(supply.source.steps_per_epoch)
    schedule = schedule_line(supply.budget.steps, optim)
    return [f"{steps}; {schedule}", *unusual_settings(objective, optim, rank)]


def _make_rollouts(
    plan: CollectPlan, tokenizer: PreTrainedTokenizerBase, rows: DataOptions, model: str
) -> Rollouts | None:
    if plan.rollout.environment is None:
        return None
    renderer = make_renderer(tokenizer, rows)
    named = resolve_environment(plan.rollout.environment)
    return make_rollouts(named, plan.rollout, renderer, plan.sampling.max_new_tokens, model)


def _resolve_reward(name: str | None, in_process: bool) -> AnyReward | None:
    return None if name is None else resolve_reward(name, in_process)


def build_job(
    config: TrainConfig,
    report: Reporter,
    processes: Processes = ALONE,
    *,
    rehearses: bool = False,
    check: Callable[[Identity], None] = lambda identity: None,
) -> TrainingJob:
    """Cheap checks first: reward and data before the model's weights, so that a mistake there costs seconds.

    With `rehearses` the reference is computed for the first step only; before, `check` gets the run's identity.
    """
    _check_device(config.layout, config.device, report)
    check_optimizer(config.optim)
    reward = _resolve_reward(config.reward, config.collect.reward_process)
    tokenizer = shared_tokenizer(config.model, config.reference, config.loading)
    rollouts = _make_rollouts(config.collect_plan, tokenizer, config.rows, config.model)
    limits = shared_limits(filter(None, (config.model, config.critic)), config.loading)
    data = read_within_limits(config.data_plan, limits, tokenizer, report)
    check_reward(reward, data, config.collect_plan, rollouts)
    models = load_models(config.model_plan, report, processes)
    if config.filter is not None:
        data = filter_pairs(config.filter, models.policy, config.layout, data, report)
    if not rehearses:
        identity = identify(config.identity_plan, tokenizer, data, models, processes.size)
        check_same_inputs(identity, processes)
        check(identity)
    needs = anchored_scores(config.objective, config.collect, bool(data.held))
    builder = AnchorBuilder(plan=config.anchor_plan, models=models, report=report, processes=processes)
    if not config.draws:
        supply = _offline_supply(data, config.batch_size, config.budget, builder, needs, rehearses)
    else:
        supply = _on_policy_supply(
            reward,
            make_renderer(tokenizer, config.rows),
            rollouts,
            prompt_data(data, tokenizer),
            config.collect_plan,
            make_follower(config.server, builder, Path(config.output), config.collect.restart_s),
            config.budget,
            builder,
            needs,
        )
    for line in _set_up_lines(supply, config.objective, config.optim, config.lora.rank):
        report.note(line)
    job = TrainingJob(
        config=config,
        policy=models.policy,
        tokenizer=tokenizer,
        source=supply.source,
        eval_groups=data.held,
        anchors=supply.anchors,
        prepared=data.prepared,
        optimizer=_optimizer(models.policy, config.optim, config.seed, config.objective),
        budget=supply.budget,
        saved=models.saved,
        processes=processes,
    )
    check_start(job)
    return job
