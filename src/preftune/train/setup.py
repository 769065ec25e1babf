"""Everything that a run needs before its first step: policy, groups, reference, optimizer, and the checks at
step 0.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from preftune.data.fit import take_completions
from preftune.data.options import DataOptions
from preftune.data.prepare import Prepared, prepare
from preftune.data.render import make_renderer
from preftune.data.signals import SignalName
from preftune.data.store import JoinedGroups, SomeGroups
from preftune.errors import ConfigError, DataError
from preftune.model.adapters import inject_lora
from preftune.model.classifier import check_classifier
from preftune.model.kernels.products import has_bf16
from preftune.model.kernels.recompute import check_recomputes
from preftune.model.layout import split_micro_batches
from preftune.model.load import check_same_tokenizer, load_model, load_tokenizer, pick_device, resolve_model
from preftune.model.policy import Policy, in_shards, make_value_head, score_groups
from preftune.model.proof import check_attention, choose_layout
from preftune.model.reference import REFERENCE_SCORES, check_equal, weights_digest
from preftune.objectives import Objective
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.progress import Reporter
from preftune.rewards import COLUMNS, AnyReward, check_columns, resolve_reward
from preftune.rewards.questions import shared_columns
from preftune.sampling.engine import Engine, choose_engine
from preftune.sampling.sample import Blend, evaluating
from preftune.train.anchors import TOLERANCE, AnchorBuilder, Anchors
from preftune.train.batches import ANCHORED, mismatched_groups, wants_mismatched
from preftune.train.filters import filter_pairs
from preftune.train.onpolicy.collect import CollectOptions, Judge, chosen_selection
from preftune.train.onpolicy.follower import Follower
from preftune.train.onpolicy.source import OnPolicySource
from preftune.train.optim import make_optimizer
from preftune.train.options import TrainConfig
from preftune.train.processes import ALONE, Processes
from preftune.train.rounding import sum_gradients_exactly
from preftune.train.sources import OfflineSource, hold_out
from preftune.types import Group, Hybrid, Labels, Pairs, Record, Rewards

_SIGNAL_NAMES: dict[type, SignalName] = {
    Pairs: "pairs",
    Labels: "labels",
    Rewards: "rewards",
    Hybrid: "hybrid",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A run, ready to start."""

    config: TrainConfig
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    source: OfflineSource | OnPolicySource
    eval_groups: Sequence[Group]
    anchors: Anchors
    optimizer: torch.optim.Optimizer
    prepared: Prepared
    num_steps: int
    processes: Processes

    @property
    def eval_every(self) -> int:
        """Steps between evaluations on held-out data."""
        steps = self.config.eval_every or max(1, self.num_steps // 10)
        return steps + steps % 2 if self.config.optim.extragradient else steps

    @property
    def samples(self) -> OnPolicySource | None:
        """The source, if it draws from the policy."""
        return self.source if isinstance(self.source, OnPolicySource) else None


def load_policy(config: TrainConfig, report: Reporter, lockstep: bool = False) -> tuple[Policy, str]:
    """The policy at its start, its layout proven, adapters injected; and the digest of its weights without
    adapters.

    One that will be cut up is still whole, and on the CPU: it may not fit on the device.
    """
    torch.manual_seed(config.seed)
    low = config.optim.weights == "bf16" or (
        config.precision == "bf16" and config.lora.rank > 0
    )  # with adapters, what is frozen
    dtype = torch.bfloat16 if low else torch.float32
    device = torch.device("cpu") if lockstep else pick_device(config.device)
    model = load_model(resolve_model(config.model), config.loading, dtype).to(device)  # type: ignore[arg-type]
    if isinstance(config.objective, BradleyTerry):
        check_classifier(model)
    if config.precision == "bf16" and device.type == "cpu" and not has_bf16():
        report.note(
            "precision: this processor has no bf16 products and computes them in fp32: bf16 saves memory here, not time"
        )
    sharing, reason = choose_layout(model, config.layout, config.precision)
    report.note(f"layout: {sharing} rows" + (f" ({reason})" if reason else ""))
    digest = weights_digest(
        model
    )  # before the adapters, which change nothing yet: one cache serves every rank and seed
    if config.optim.weights == "bf16":
        sum_gradients_exactly(model.parameters())
    peft_model: Any = inject_lora(model, config.lora) if config.lora.rank else None
    if peft_model is not None:
        peft_model.eval()
    if config.gradient_checkpointing:
        check_recomputes(model)
    policy = Policy(
        model=model,
        precision=config.precision,
        sharing=sharing,
        sharing_reason=reason,
        peft_model=peft_model,
        value_head=make_value_head(model) if config.objective.needs & {"value", "value_after"} else None,
        kept_positions=0 if config.gradient_checkpointing else config.layout.micro_batch_tokens,
    )
    return policy, digest


def prepare_groups(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Prepared, Sequence[Group], Sequence[Group]]:
    """(what was read, training groups, held-out groups); on-policy, groups are prompts without completions."""
    objective = config.objective
    if config.source == "on-policy":
        prepared = prepare(config.data, tokenizer, "prompts", prompt_rows(config))
        return prepared, *hold_out(prepared.groups, config.eval_fraction, config.seed)
    signal = _SIGNAL_NAMES[objective.signal]
    prepared = prepare(config.data, tokenizer, signal, config.rows)
    if config.eval_data is not None:
        train, held = prepared.groups, prepare(config.eval_data, tokenizer, signal, config.rows).groups
    else:
        train, held = hold_out(prepared.groups, config.eval_fraction, config.seed)
    train = learned_groups(train, objective)
    if not train:
        raise DataError(
            f"{config.data} has nothing for this objective to learn from",
            got=f"{len(prepared.groups)} groups without a preferred completion",
            expected="preferred completions or pairs",
        )
    return prepared, train, held


def prompt_rows(config: TrainConfig) -> DataOptions:
    """How prompts are read: without what makes pairs of completions, and with room for the budget of a
    completion.
    """
    room = config.rows.max_length - config.sampling.max_new_tokens + 1
    if room < 2:
        raise ConfigError(
            "rows.max_length leaves no room for a prompt",
            got=f"{config.rows.max_length} tokens",
            expected=f"more than sampling.max_new_tokens, {config.sampling.max_new_tokens}",
        )
    if config.collect.data_share:  # then these say what is made of the completions in the data
        return replace(config.rows, max_length=room, pairing="all", min_gap=0.0, soft_label_temperature=None)
    return replace(config.rows, max_length=room)


def make_samples(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    reward: AnyReward,
    records: Sequence[Record],
    prompts: Sequence[Group],
    report: Reporter,
    writer: Blend | None,
    engine: Engine,
    processes: Processes,
) -> OnPolicySource:
    """The source of an on-policy run."""
    objective, options = config.objective, config.collect
    data: Sequence[Group] = ()
    if options.data_share:
        held_in = {group.prompt.tobytes() for group in prompts}
        found = prepare(config.data, tokenizer, _SIGNAL_NAMES[objective.signal], config.rows).groups
        places = [place for place, group in enumerate(found) if group.prompt.tobytes() in held_in]
        data = learned_groups(SomeGroups(groups=found, places=np.array(places, dtype=np.int64)), objective)
        if not data:
            raise DataError(
                f"{config.data} has nothing for this objective to learn from",
                got="collect.data_share above 0",
                expected="completions with preferences",
            )
    judge = Judge(
        renderer=make_renderer(tokenizer, config.rows.template),
        sampling=config.sampling,
        reward=reward,
        reward_name=config.reward or "",
        timeout_s=options.reward_timeout_s,
        engine=engine,
    )
    return OnPolicySource(
        policy=policy,
        judge=judge,
        prompts=prompts,
        records={record.origin: record for record in records},
        data=data,
        options=options,
        selection=chosen_selection(options, objective.signal),
        layout=config.layout,
        batch_size=config.batch_size,
        seed=config.seed,
        wants_values="behaviour_value" in objective.needs,
        tolerance=TOLERANCE[config.precision] if options.sampler_gap is None else options.sampler_gap,
        report=report,
        follower=Follower(config.server, policy, Path(config.output) / "server")
        if config.server.url
        else None,
        opponent=_opponent(options, writer),
        processes=processes,
    )


def proven_engine(config: TrainConfig, policy: Policy, report: Reporter) -> Engine:
    """How completions are drawn in this process, if they are: proven on the policy before it is cut up."""
    if config.source == "offline" or (config.server.url and config.collect.opponent == "none"):
        return "shared"
    with evaluating(policy.model):
        engine, reason = choose_engine(policy.model)
    if reason:
        report.note(f"sampling: prompts are {engine} for every completion ({reason})")
    return engine


def _opponent(options: CollectOptions, writer: Blend | None) -> Blend | None:
    """Who answers beside the policy: the reference, or a mixture of the two."""
    if options.opponent == "none":
        return None
    assert writer is not None, "an on-policy reference is live or the policy without its adapter"
    return writer if options.opponent == "reference" else replace(writer, share=options.opponent_share)


@dataclass(frozen=True, eq=False, kw_only=True)
class LearnedGroups(Sequence[Group]):
    """Labeled groups without the completions that an objective puts no weight on; made when they are asked
    for.
    """

    groups: Sequence[Group]
    counted: frozenset[int]  # labels

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> "LearnedGroups": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "Group | LearnedGroups":
        if isinstance(index, slice):
            return LearnedGroups(groups=self.groups[index], counted=self.counted)
        group = self.groups[operator.index(index)]
        keep = [k for k, label in enumerate(group.labels) if label in self.counted]
        return group if len(keep) == len(group.completions) else take_completions(group, keep, pairs=())


def learned_groups(groups: Sequence[Group], objective: Objective) -> Sequence[Group]:
    """Labeled groups without the completions on which the objective puts no weight (SFT: the dispreferred
    ones).
    """
    if objective.signal is not Labels:
        return groups
    lengths = torch.ones(1, dtype=torch.long)
    counted = frozenset(
        label
        for label in (1, -1)
        if (objective.weights(lengths, Labels(label=torch.tensor([label]))).sum() > 0).item()
    )
    places = [place for place, group in enumerate(groups) if any(label in counted for label in group.labels)]
    return LearnedGroups(
        groups=SomeGroups(groups=groups, places=np.array(places, dtype=np.int64)), counted=counted
    )


def check_start(job: Job) -> float | None:
    """Step 0: policy = reference, so every log-ratio is 0 and DPO's loss is ln 2. Returns the largest
    difference seen.

    Nothing to check with another model as reference, or without one.
    """
    config, reference = job.config, job.anchors.reference
    if reference is None or config.reference.model is not None or isinstance(job.source, OnPolicySource):
        return None
    few = job.source.take(1)[:4]
    worst = 0.0
    for indices in split_micro_batches(few, config.layout, job.policy.sharing):
        part = [few[i] for i in indices]
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


def scored_groups(
    objective: Objective, source: OfflineSource, held: Sequence[Group], num_steps: int
) -> Sequence[Group]:
    """Every group that anchors will be asked about: of training if the objective needs them, and of
    evaluation.
    """
    if not objective.needs & ANCHORED:
        return held
    groups = JoinedGroups(first=source.visited(num_steps), second=held)
    if not wants_mismatched(objective):
        return groups
    mismatched = [group for step in range(1, num_steps + 1) for group in mismatched_groups(source.take(step))]
    return JoinedGroups(first=groups, second=[*mismatched, *mismatched_groups(held)])


def _num_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    whole = 2 if config.optim.extragradient else 1
    steps = max(1, round(config.epochs * steps_per_epoch / whole)) * whole
    return min(steps, config.max_steps) if config.max_steps else steps


def build_job(
    config: TrainConfig, report: Reporter, processes: Processes = ALONE, *, rehearses: bool = False
) -> Job:
    """Cheap checks first: reward and data before the model's weights, so that a mistake there costs seconds.

    Who `rehearses` has the reference's numbers for the first step alone.
    """
    check_attention(config.layout, pick_device(config.device))
    reward = resolve_reward(config.reward) if config.reward is not None else None
    tokenizer = load_tokenizer(resolve_model(config.model), config.loading)
    options = config.reference
    for other in (options.model, options.contrast_positive, options.contrast_negative):
        if other is not None:
            check_same_tokenizer(config.model, other, config.loading)
    prepared, train, held = prepare_groups(config, tokenizer)
    for line in prepared.report.lines():
        report.note(line)
    report.note(f"{len(train)} groups to train on, {len(held)} held out")
    records = prepared.records if reward is not None else ()
    if reward is not None:
        check_columns(reward, config.reward or "", shared_columns(records) | set(COLUMNS))
    policy, start_digest = load_policy(config, report, processes.lockstep)
    engine = proven_engine(config, policy, report)
    if processes.lockstep:
        policy = in_shards(policy, config.shard, pick_device(config.device))
    if config.filter is not None:
        prepared, train = filter_pairs(config, policy, prepared, train, report)
    needs = config.objective.needs & ANCHORED
    watched = (
        {"ref_logp"} if held and not isinstance(config.objective, BradleyTerry) else set()
    )  # log-ratios of held-out data
    if config.collect.opponent != "none":
        watched.add("ref_logp")

    def anchors_of(groups: Sequence[Group]) -> Anchors:
        builder = AnchorBuilder(
            config=config,
            policy=policy,
            start_digest=start_digest,
            groups=groups,
            report=report,
            processes=processes,
        )
        return builder.build(needs | watched) if needs or watched else Anchors()

    if reward is not None:
        anchors = anchors_of([])
        source = make_samples(
            config, tokenizer, policy, reward, records, train, report, anchors.writer, engine, processes
        )
        num_steps = _num_steps(config, source.steps_per_epoch)
        if config.max_samples is not None:
            num_steps = min(num_steps, source.steps_within(config.max_samples))
    else:
        source = OfflineSource(groups=train, batch_size=config.batch_size, seed=config.seed)
        num_steps = _num_steps(config, source.steps_per_epoch)
        anchors = anchors_of(
            source.take(1) if rehearses else scored_groups(config.objective, source, held, num_steps)
        )
    job = Job(
        config=config,
        policy=policy,
        tokenizer=tokenizer,
        source=source,
        eval_groups=held,
        anchors=anchors,
        prepared=prepared,
        optimizer=make_optimizer(policy.trainable().values(), config.optim, config.seed),
        num_steps=num_steps,
        processes=processes,
    )
    if needs & REFERENCE_SCORES:
        check_start(job)
    return job
