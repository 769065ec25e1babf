"""The settings of a training run: a tree of frozen dataclasses, each owned by its room."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from preftune.data.memory import source_name
from preftune.data.options import DataOptions
from preftune.environments.base import RolloutOptions
from preftune.environments.checks import check_environment, reward_with
from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.reference import ReferenceOptions
from preftune.model.shard import ShardOptions
from preftune.model.whole_model import LoadOptions
from preftune.objectives import Objective, make_objective
from preftune.objectives.base import smallest_step
from preftune.objectives.bnf import BNF
from preftune.sampling.client import ServerOptions
from preftune.sampling.prefix import PrefixOptions
from preftune.sampling.sample import SampleOptions
from preftune.train.anchors import TOLERANCE, AnchorPlan
from preftune.train.best import BestMetric
from preftune.train.budget import Budget, resolved_steps
from preftune.train.checks import (
    check_anchors,
    check_batch_size,
    check_critic,
    check_filter,
    check_low_weights,
    check_own_objective,
    check_quantization,
    check_shards,
)
from preftune.train.groups import DataPlan
from preftune.train.identity import IdentityPlan, compared_settings
from preftune.train.models import ModelPlan
from preftune.train.onpolicy.checks import (
    check_continuation,
    check_extragradient,
    check_max_samples,
    check_opponent,
    check_sampling,
    check_server,
    check_unjudged,
    weighs_ratios,
)
from preftune.train.onpolicy.collect import CollectOptions, chosen_selection
from preftune.train.onpolicy.correction import chosen_correction
from preftune.train.onpolicy.credit import StepUse
from preftune.train.onpolicy.source import CollectPlan
from preftune.train.optim import OptimOptions
from preftune.train.runlog import to_plain
from preftune.train.trackers import checked_trackers


def four_completions() -> SampleOptions:
    """On-policy sampling unless said otherwise: four completions a prompt, from the policy as it is."""
    return SampleOptions(num_completions=4)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Args:
        data: preference data: a file, a folder or a hub id; on-policy, of which the prompts are used.
        output: the run folder, which must not hold anything yet.
        model: the policy at its start: a bundled name, a folder, a .gguf file, an adapter folder or a hub id.
        objective: the loss and its hyperparameters; from Python also the text "dpo(beta=0.1)".
        source: "offline" learns from the completions in `data`, "on-policy" from samples of the policy, scored
            by `reward`, "hybrid" from both: half of the groups are from the data, half are scored samples; for
            objectives on samples without a reward (hypo), each pair from the data with samples of its prompt.
        reward: on-policy: a built-in reward or module:function; by default that of the environment.
        eval_data: held-out data, in any format that `data` may have; on-policy its prompts are used.
        filter: leave out pairs by what the policy at its start makes of them: "ches<0.9" keeps those of
            training whose length-normalized CHES is below its 0.9-quantile.
        eval_fraction: without `eval_data`, the share of prompts held out of `data`; 0 turns evaluation off.
        batch_size: groups (prompts with their completions) per step.
        epochs: passes over the data; a fraction is a part of a pass.
        max_steps: optimizer steps, in place of `epochs`: the data are gone over as often as that takes.
        max_samples: on-policy: stop before the draw that would take the completions drawn beyond this.
        max_minutes: stop at the last step within this much training by the run's own clock: its steps and
            what is drawn for them, without evaluations and saving.
        eval_every: steps between evaluations on held-out data; a tenth of the run when not given.
        save_every: steps between checkpoints; 0 saves one only when the run is interrupted.
        keep_checkpoints: how many of the latest checkpoints stay.
        precision: "fp32", or "bf16": bf16 arithmetic and frozen weights; optim.weights sets the type of trained
            weights.
        keep_best: final/ holds the weights of the evaluation that was best by this held-out metric: loss, reward,
            rewards/accuracies, ...; "max:NAME" or "min:NAME" for others; true is the loss, on-policy the reward.
        early_stopping_patience: with keep_best: stop after this number of evaluations without an improvement.
        save_dtype: of the weights in final/: "bf16", "fp16", "fp32", or "auto": as in the model's files, of
            adapters fp32.
        gradient_checkpointing: compute each layer again in backward: less memory, about a third more time.
        critic: of objectives with a critic: the reward model that a separate critic network starts from. Without
            it the critic is a scalar head on the policy.
        router_aux_loss_coef: of a mixture of experts: coefficient of the auxiliary loss that balances the load of
            the experts; the model's own when not given, 0 leaves the loss out.
        device: "auto" takes a GPU if there is one, and of several processes each its own.
        report_to: trackers that get every metric: tensorboard, wandb, mlflow, trackio (several with commas).
        process_minutes: with several processes: how long one waits for the others before the run stops; more
            than a reward or a server ever takes.
        seed: of the data order, the held-out split and the adapters' start.
        rows: how data files become groups of tokens.
        layout: how groups are laid out for the model.
        optim: the optimizer and its schedule.
        lora: low-rank adapters.
        shard: how the model lies on several processes.
        reference: the frozen anchor.
        sampling: on-policy: how completions are drawn.
        prefix: on-policy: a beginning that completions continue from; rewards see it as a part of them, and it is
            context to all else.
        collect: on-policy: how much is drawn, and what is made of it.
        rollout: on-policy: an environment that answers the policy between its turns, and limits.
        server: on-policy: a server that draws, and follows the adapter that trains.
        loading: security settings for loading models.
    """

    data: str | Any
    output: str
    model: str = "smollm2-135m-instruct"
    objective: Objective = field(default_factory=BNF)
    source: Literal["offline", "on-policy", "hybrid"] = "offline"
    reward: str | None = None
    filter: str | None = None
    eval_data: str | Any | None = None
    eval_fraction: float = 0.1
    batch_size: int = 8
    epochs: float = 1.0
    max_steps: int | None = None
    max_samples: int | None = None
    max_minutes: float | None = None
    eval_every: int | None = None
    save_every: int = 0
    keep_checkpoints: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    keep_best: str | bool | None = None
    early_stopping_patience: int | None = None
    save_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    critic: str | None = None
    router_aux_loss_coef: float | None = None
    device: str = "auto"
    report_to: list[str] = field(default_factory=list)
    process_minutes: float = 60.0
    seed: int = 0
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    shard: ShardOptions = field(default_factory=ShardOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    sampling: SampleOptions = field(default_factory=four_completions)
    prefix: PrefixOptions = field(default_factory=PrefixOptions)
    collect: CollectOptions = field(default_factory=CollectOptions)
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if isinstance(self.objective, str):  # as it is written on the command line
            object.__setattr__(self, "objective", make_objective(self.objective))
        self._check_ranges()
        for name in ("data", "eval_data"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, source_name(value))
        object.__setattr__(self, "report_to", checked_trackers(self.report_to))
        if not self.data:
            raise ConfigError("data is empty", expected="a file, a folder or a hub id")
        self._check_evaluation()
        if self.save_every == 0:
            refuse_idle(self, "without save_every", "keep_checkpoints", do="Set --save_every N")
        if self.reference.mode == "adapter" and self.lora.rank == 0:
            raise ConfigError(
                "reference.mode adapter has no adapter to switch off",
                got="lora.rank 0",
                do="Set --lora.rank, or --reference.mode cache or live",
            )
        optim = self.optim.resolved(self.objective.learning_rates, self.lora.rank)
        object.__setattr__(self, "optim", optim)
        check_shards(self.optim, self.shard)
        check_quantization(self.lora, self.shard)
        check_low_weights(self.optim, self.precision, self.lora, self.shard, self.reference)
        check_critic(self.objective, self.critic, self.optim, self.shard)
        if self.optim.extragradient:
            check_extragradient(
                self.objective,
                self.collect if self.draws else None,
                self.batch_size,
                has_limits=self.max_samples is not None or self.max_minutes is not None,
                counts={
                    "max_steps": self.max_steps,
                    "save_every": self.save_every,
                    "eval_every": self.eval_every,
                    "reference.update_every": self.reference.update_every,
                },
            )
        if self.source == "hybrid" and not self.unjudged and self.collect.data_share is None:
            object.__setattr__(self, "collect", replace(self.collect, data_share=0.5))
        (self._check_on_policy if self.draws else self._check_offline)()
        check_batch_size(self.objective, self.batch_size)
        check_own_objective(self.objective)
        check_filter(self.filter, self.source, self.objective)
        check_anchors(self.objective, self.reference, self.source)

    def _check_ranges(self) -> None:
        counts = ("batch_size", "max_steps", "eval_every", "keep_checkpoints", "early_stopping_patience")
        check_range(self, "[1, inf)", *counts)
        check_range(self, "[0, inf)", "save_every", "router_aux_loss_coef")
        check_range(self, "[0, 4611686018427387904)", "seed", expected="0 or more, less than 2**62")
        check_range(self, "(0, inf)", "epochs", "max_minutes")
        check_range(self, "(0, 10080]", "process_minutes", expected="above 0, and a week at most")
        check_range(self, "[0, 1)", "eval_fraction")

    def _check_evaluation(self) -> None:
        if self.eval_data is not None:
            refuse_idle(self, "with eval_data", "eval_fraction", do="Leave one out")
        elif self.eval_fraction == 0:
            refuse_idle(
                self,
                "without held-out data",
                "eval_every",
                "keep_best",
                got="eval_fraction 0",
                do="Set --eval_fraction or --eval_data, or leave it out",
            )
        if self.keep_best:
            _ = self.best_metric
        else:
            refuse_idle(self, "without keep_best", "early_stopping_patience", do="Set --keep_best METRIC")

    def _check_offline(self) -> None:
        idle = ("reward", "sampling", "prefix", "collect", "rollout", "max_samples")
        offline = {"got": "source offline", "do": "Set --source on-policy"}
        refuse_idle(self, "offline", *idle, **offline)
        if self.server.url:
            refuse_idle(self, "offline", "server", **offline)

    @property
    def draws(self) -> bool:
        """Whether completions are sampled in training."""
        return self.source != "offline"

    @property
    def unjudged(self) -> bool:
        """Whether they stay unscored: the objective reads them as they are, with pairs of the data."""
        return self.source == "hybrid" and self.objective.unjudged_samples

    @property
    def room(self) -> int:
        """Tokens that a completion which is drawn may need."""
        return self.rollout.total_tokens if self.rollout.environment else self.sampling.max_new_tokens

    @property
    def sampled_at(self) -> float:
        """Temperature of the distribution that completions come from, which is the policy of an on-policy
        run; 1 for data in a file, and for the most probable completion alone.
        """
        return (self.sampling.temperature or 1.0) if self.draws else 1.0

    @property
    def scored_at(self) -> float:
        """Temperature at which the policy is scored: that of sampling, except for objectives that imitate
        completions.
        """
        return 1.0 if self.objective.imitates else self.sampled_at

    @property
    def best_metric(self) -> BestMetric:
        """What `keep_best` names."""
        assert self.keep_best
        return BestMetric.of(self.keep_best, "reward" if self.draws and not self.unjudged else "loss")

    @property
    def data_plan(self) -> DataPlan:
        """Data options."""
        return DataPlan(
            data=self.data,
            eval_data=self.eval_data,
            eval_fraction=self.eval_fraction,
            seed=self.seed,
            rows=self.rows,
            objective=self.objective,
            room=self.room if self.draws else None,
            uses_completions=self.draws and bool(self.collect.data_share),
            unjudged=self.unjudged,
        )

    @property
    def model_plan(self) -> ModelPlan:
        """Model options."""
        return ModelPlan(
            model=self.model,
            loading=self.loading,
            device=self.device,
            precision=self.precision,
            seed=self.seed,
            layout=self.layout,
            lora=self.lora,
            longest=self.rows.max_length,
            shard=self.shard,
            low_weights=self.optim.weights == "bf16",
            gradient_checkpointing=self.gradient_checkpointing,
            critic=self.critic,
            router_aux_loss_coef=self.router_aux_loss_coef,
            classifies=self.objective.trains == "reward model",
            save_dtype=self.save_dtype,
            value_heads=self.objective.value_heads if self.objective.needs & {"value", "value_after"} else 0,
            draws=self.draws and (not self.server.url or self.collect.opponent != "none"),
        )

    @property
    def anchor_plan(self) -> AnchorPlan:
        """Reference options."""
        return AnchorPlan(
            options=self.reference, model=self.model_plan, on_policy=self.draws, temperature=self.sampled_at
        )

    @property
    def collect_plan(self) -> CollectPlan:
        """Sampling options."""
        gap = self.collect.sampler_gap
        return CollectPlan(
            options=self.collect,
            sampling=self.sampling,
            prefix=self.prefix,
            reward=self.reward or "",
            selection=None if self.unjudged else chosen_selection(self.collect, self.objective.signal),
            layout=self.layout,
            batch_size=self.batch_size,
            least=smallest_step(self.objective),
            seed=self.seed,
            step_use=StepUse.of(self.objective),
            rollout=self.rollout,
            wants_values="behaviour_value" in self.objective.needs,
            tolerance=TOLERANCE[self.precision] if gap is None else gap,
            correction=chosen_correction(self.collect, self.objective, self.sampling, bool(self.server.url)),
        )

    @property
    def identity_plan(self) -> IdentityPlan:
        """What identifies the run."""
        return IdentityPlan(
            settings=compared_settings(to_plain(self)),
            splits=self.eval_data is None,
            reference=self.reference,
            reward=self.reward,
            critic=self.critic,
            objective=self.objective,
        )

    def budget(self, steps_per_epoch: int) -> Budget:
        """Budget of the run."""
        whole = 2 if self.optim.extragradient else 1
        return Budget(
            steps=resolved_steps(steps_per_epoch, self.epochs, self.max_steps, whole),
            samples=self.max_samples,
            minutes=self.max_minutes,
        )

    def _check_on_policy(self) -> None:
        check_environment(self.rollout, self.sampling, self.prefix)
        object.__setattr__(self, "reward", reward_with(self.rollout.environment, self.reward))
        if self.unjudged:
            check_unjudged(self.objective, self.reward, self.collect, self.rollout.environment)
        elif self.reward is None:
            raise ConfigError(
                "On-policy samples are scored by a reward",
                got="none",
                expected="--reward NAME or module:function",
            )
        if self.reference.mode == "cache":
            raise ConfigError(
                "A cached reference knows no completions that are yet to be drawn",
                got="reference.mode cache",
                expected="auto, live or adapter",
                do="Leave out --reference.mode",
            )
        if self.source == "hybrid" and self.collect.data_share == 0:
            raise ConfigError(
                "Source hybrid learns from completions of the data, too",
                got="collect.data_share 0",
                do="Set --source on-policy",
            )
        if not self.unjudged:
            check_opponent(self.objective, self.collect)
        check_max_samples(self.max_samples, self.sampling, self.collect, self.batch_size)
        chosen_selection(self.collect, self.objective.signal)
        check_sampling(self.objective, self.sampling, self.collect, self.unjudged)
        chosen_correction(self.collect, self.objective, self.sampling, bool(self.server.url))
        check_continuation(self.prefix, self.collect, self.unjudged)
        if self.server.url:
            check_server(self.server, self.sampling, self.lora, weighs_ratios(self.objective))
        else:
            refuse_idle(
                self.collect, "without a server", "restart_s", prefix="collect.", do="Set --server.url"
            )
