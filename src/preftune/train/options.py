"""The settings of a training run: a tree of frozen dataclasses, each owned by its room."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from preftune.data.options import DataOptions
from preftune.errors import ConfigError
from preftune.measures.ches import parse_filter
from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions
from preftune.model.reference import REFERENCE_SCORES, VOCABULARY_SCORES, ReferenceOptions
from preftune.model.shard import ShardOptions
from preftune.objectives import Objective, objective_name
from preftune.objectives.bnf import BNF
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.sampling.client import ServerOptions
from preftune.sampling.sample import SampleOptions
from preftune.train.onpolicy.collect import CollectOptions, chosen_selection
from preftune.types import Hybrid, Labels, Pairs, Rewards


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """AdamW and its schedule.

    Args:
        learning_rate: peak learning rate; around 1e-6 for all weights, 1e-5 to 1e-4 for adapters.
        schedule: what follows the warm-up: "linear" or "cosine" to zero, or "constant".
        warmup_ratio: share of all steps in which the learning rate rises linearly from zero.
        weight_decay: decoupled weight decay.
        adam_beta1: decay of the gradient's mean.
        adam_beta2: decay of the gradient's square.
        adam_epsilon: added to the root of the latter.
        max_grad_norm: the gradient of a step is scaled down to this norm; 0 leaves it as it is.
        weights: "fp32", or with precision bf16 "bf16": all weights train in bf16, they and both moments
            rounded up or down by
            chance: 10 bytes a weight, gradient included, instead of 16.
        extragradient: on-policy: steps come in twos; the first is taken back once the second's samples are
            drawn (EGPO).
    """

    learning_rate: float = 1e-6
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    weights: Literal["fp32", "bf16"] = "fp32"
    extragradient: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, math.inf),
            ("warmup_ratio", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("adam_beta1", 0.0, 1.0),
            ("adam_beta2", 0.0, 1.0),
            ("max_grad_norm", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not low <= value < high and not (name == "warmup_ratio" and value == 1.0):
                raise ConfigError(
                    f"{name} is out of range", got=value, expected=f"a number in [{low:g}, {high:g})"
                )
        if not self.adam_epsilon > 0:
            raise ConfigError(
                "adam_epsilon is out of range", got=self.adam_epsilon, expected="a number above 0"
            )


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
        objective: the loss and its hyper-parameters.
        source: "offline" learns from the completions in `data`, "on-policy" from the policy's own, judged by
            `reward`.
        reward: on-policy: a built-in reward or module:function.
        eval_data: held-out data, in any format that `data` may have.
        filter: leave out pairs by what the policy at its start makes of them: "ches<0.9" keeps those of
            training whose length-normalized CHES is below its 0.9-quantile.
        eval_fraction: without `eval_data`, the share of prompts held out of `data`; 0 turns evaluation off.
        batch_size: groups (prompts with their completions) per step.
        epochs: passes over the data.
        max_steps: stop after this many steps, whatever `epochs` says.
        max_samples: on-policy: stop before the draw that would take the completions drawn beyond this.
        max_minutes: stop at the last step within this much training by the run's own clock: its steps and
            what is drawn for them, without evaluations and saving.
        eval_every: steps between evaluations on held-out data; a tenth of the run when not given.
        save_every: steps between checkpoints; 0 saves one only when the run is interrupted.
        keep_checkpoints: how many of the latest checkpoints stay.
        precision: "fp32", or "bf16": bf16 arithmetic, trained weights as optim.weights says, frozen ones in
            bf16.
        gradient_checkpointing: compute each layer again in backward: less memory, about a third more time.
        device: "auto" takes a GPU if there is one, and of several processes each its own.
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
        collect: on-policy: how much is drawn, and what is made of it.
        server: on-policy: a server that draws, and follows the adapter that trains.
        loading: what may be loaded beside plain tensors.
    """

    data: str
    output: str
    model: str = "smollm2-135m-instruct"
    objective: Objective = field(default_factory=BNF)
    source: Literal["offline", "on-policy"] = "offline"
    reward: str | None = None
    filter: str | None = None
    eval_data: str | None = None
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
    gradient_checkpointing: bool = False
    device: str = "auto"
    process_minutes: float = 60.0
    seed: int = 0
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    shard: ShardOptions = field(default_factory=ShardOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    sampling: SampleOptions = field(default_factory=four_completions)
    collect: CollectOptions = field(default_factory=CollectOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        for name, low in (
            ("batch_size", 1),
            ("max_steps", 1),
            ("eval_every", 1),
            ("save_every", 0),
            ("keep_checkpoints", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is out of range", got=value, expected=f"at least {low}")
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise ConfigError("epochs is out of range", got=self.epochs, expected="a number above 0")
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise ConfigError(
                "max_minutes is out of range", got=self.max_minutes, expected="a number above 0"
            )
        if not 0 < self.process_minutes <= 60 * 24 * 7:
            raise ConfigError(
                "process_minutes is out of range",
                got=self.process_minutes,
                expected="above 0, and a week at most",
            )
        if self.seed >= 2**62:
            raise ConfigError("seed is out of range", got=self.seed, expected="less than 2**62")
        if not 0 <= self.eval_fraction < 1:
            raise ConfigError("eval_fraction is out of range", got=self.eval_fraction, expected="[0, 1)")
        if not self.data:
            raise ConfigError("data is empty", expected="a file, a folder or a hub id")
        if self.eval_data is not None and self.eval_fraction != 0.1:
            raise ConfigError(
                "eval_fraction has no effect with eval_data", got=self.eval_fraction, do="Leave one out"
            )
        if self.eval_data is None and self.eval_fraction == 0 and self.eval_every is not None:
            raise ConfigError(
                "eval_every has no effect without held-out data",
                got="eval_fraction 0",
                do="Set --eval_fraction or --eval_data, or leave eval_every out",
            )
        if self.keep_checkpoints > 1 and self.save_every == 0:
            raise ConfigError(
                "keep_checkpoints has no effect without save_every",
                got=self.keep_checkpoints,
                do="Set --save_every N",
            )
        if self.reference.mode == "adapter" and self.lora.rank == 0:
            raise ConfigError(
                "reference.mode adapter has no adapter to switch off",
                got="lora.rank 0",
                do="Set --lora.rank, or --reference.mode cache or live",
            )
        if self.optim.weights == "bf16":
            self._check_weights()
        if self.optim.extragradient:
            self._check_extragradient()
        self._check_source()
        self._check_filter()
        self._check_objective()

    def _check_weights(self) -> None:
        """Who can train in bf16."""
        if self.precision != "bf16":
            raise ConfigError(
                "optim.weights bf16 computes in bf16",
                got=f"precision {self.precision}",
                expected="bf16",
                do="Set --precision bf16",
            )
        if self.lora.rank:
            raise ConfigError(
                "optim.weights has no effect on adapters: what is frozen is in bf16 already",
                got=f"lora.rank {self.lora.rank}",
                do="Leave it out",
            )
        if self.shard.mode != "none":
            raise ConfigError(
                "optim.weights bf16 sums gradients in fp32, which a model in shards cannot",
                got=f"shard.mode {self.shard.mode}",
                do="Leave one out",
            )
        if self.reference.update_every and self.reference.update_rate < 1:
            raise ConfigError(
                "A reference in bf16 cannot follow in parts of a step: they are lost in rounding",
                got=f"reference.update_rate {self.reference.update_rate:g} with optim.weights bf16",
                expected="update_rate 1, or optim.weights fp32",
            )

    def _check_extragradient(self) -> None:
        """Two steps are one: what counts steps counts them in twos, and each draws its own samples."""
        fresh = (
            self.collect.prompts in (None, self.batch_size)
            and not self.collect.lag
            and not self.collect.replay
        )
        if self.source == "offline" or not fresh or self.collect.epochs > 1:
            raise ConfigError(
                "optim.extragradient wants samples of each half step",
                got="data that do not follow the policy",
                expected="--source on-policy with a collection for each step",
                do="Leave out collect.prompts, epochs, replay and lag",
            )
        if self.objective.needs & {"behaviour_logp", "behaviour_value"}:
            raise ConfigError(
                "optim.extragradient takes the step that samples were drawn after back, which makes ratios wrong",
                got=objective_name(self.objective),
                expected="an objective without importance ratios",
            )
        if self.max_samples is not None or self.max_minutes is not None:
            raise ConfigError(
                "optim.extragradient makes one step of two, between which a run cannot end",
                got="max_samples or max_minutes",
                expected="max_steps",
            )
        for name, value in (
            ("max_steps", self.max_steps),
            ("save_every", self.save_every),
            ("eval_every", self.eval_every),
            ("reference.update_every", self.reference.update_every),
        ):
            if value and value % 2:
                raise ConfigError(
                    f"{name} is odd, and optim.extragradient makes one step of two",
                    got=value,
                    expected="an even number",
                )

    def _check_source(self) -> None:
        """What belongs to one source is refused with the other."""
        if self.source == "offline":
            idle = {
                "reward": self.reward is not None,
                "sampling": self.sampling != four_completions(),
                "collect": self.collect != CollectOptions(),
                "server": bool(self.server.url),
                "max_samples": self.max_samples is not None,
            }
            for name in (name for name, given in idle.items() if given):
                raise ConfigError(
                    f"{name} has no effect offline", got="source offline", do="Set --source on-policy"
                )
            return
        name = objective_name(self.objective)
        if self.reward is None:
            raise ConfigError(
                "On-policy samples are judged by a reward",
                got="none",
                expected="--reward NAME or module:function",
            )
        if self.eval_data is not None:
            raise ConfigError(
                "eval_data has no effect on-policy: evaluation draws completions of held-out prompts",
                got=self.eval_data,
                do="Use --eval_fraction",
            )
        if self.reference.mode == "cache":
            raise ConfigError(
                "A cached reference knows no completions that are yet to be drawn",
                got="reference.mode cache",
                expected="auto, live or adapter",
                do="Leave out --reference.mode",
            )
        self._check_opponent()
        self._check_samples()
        chosen_selection(self.collect, self.objective.signal)
        wants_ratio = bool(self.objective.needs & {"behaviour_logp", "behaviour_value"})
        if wants_ratio and self.collect.data_share:
            raise ConfigError(
                f"{name} needs to know how probable a completion was when it was drawn",
                got=f"collect.data_share {self.collect.data_share}",
                do="Leave it out",
            )
        if wants_ratio and (self.sampling.truncated or self.sampling.temperature == 0):
            raise ConfigError(
                f"{name} weighs completions by importance ratios, which truncated sampling makes wrong",
                got="top_k, top_p, min_p or temperature 0",
                do="Leave these out; a temperature above 0 is corrected for",
            )
        count = self.sampling.num_completions + (self.collect.opponent != "none")
        if count < 2 and self.objective.signal is not Rewards:
            raise ConfigError(
                "One completion per prompt has nothing to be compared with",
                got="sampling.num_completions 1",
                expected="at least 2",
            )
        if self.server.url:
            self._check_server(wants_ratio)

    def _check_opponent(self) -> None:
        """Who may answer beside the policy."""
        name, opponent = objective_name(self.objective), self.collect.opponent
        expected = {"xpo": ("reference",), "nash-md": ("none", "reference", "mixture")}.get(name, ("none",))
        if self.objective.signal is Hybrid and name != "xpo":
            raise ConfigError(
                f"{name} needs completions of other sources beside the policy's",
                got="samples of the policy alone",
                expected="an objective on pairs, labels or rewards",
                do="Sample with the policy, join the samples with the data, and train on the file",
            )
        if opponent not in expected:
            raise ConfigError(
                f"{name} has another use of opponents",
                got=f"collect.opponent {opponent}",
                expected=" or ".join(expected),
                do=f"Set --collect.opponent {expected[0]}",
            )
        if opponent != "none" and self.collect.data_share:
            raise ConfigError(
                "The completions in the data have no opponent",
                got=f"collect.data_share {self.collect.data_share}",
                do="Leave it or collect.opponent out",
            )
        if opponent != "none" and name == "nash-md" and self.collect.selection is not None:
            raise ConfigError(
                "A selection has no place between win rates and nash-md",
                got=self.collect.selection,
                do="Leave out --collect.selection",
            )

    def _check_server(self, wants_ratio: bool) -> None:
        """A server follows an adapter, and must tell what the trainer can be compared with."""
        if self.lora.rank == 0:
            raise ConfigError(
                "A server can follow an adapter, not all weights",
                got="lora.rank 0",
                do="Set --lora.rank, for example 16, or draw in this process",
            )
        if self.server.model:
            raise ConfigError(
                "server.model has no effect in training: each draw is from the adapter that was just loaded",
                got=self.server.model,
                do="Leave it out",
            )
        if self.server.api not in ("auto", "tokens"):
            raise ConfigError(
                "Training on what a server draws needs its token ids",
                got=f"server.api {self.server.api}",
                expected="tokens",
            )
        changed = self.sampling.temperature != 1 or self.sampling.truncated
        if changed and (wants_ratio or self.server.logprobs == "processed"):
            raise ConfigError(
                "A server tells log-probabilities of the model or of what it drew from, and this run needs both",
                got="a temperature other than 1, top_k, top_p or min_p",
                expected="temperature 1 without truncation",
                do="Leave them out, or draw in this process",
            )

    def _check_filter(self) -> None:
        """CHES is of the two completions of a pair, and says how likely they will be."""
        if self.filter is None:
            return
        parse_filter(self.filter)
        if self.source == "on-policy":
            raise ConfigError(
                "filter has no effect on-policy",
                got=self.filter,
                expected="pairs in a file",
                do="Leave it out",
            )
        if self.objective.signal not in (Pairs, Labels) or isinstance(self.objective, BradleyTerry):
            raise ConfigError(
                "filter has no effect on this objective: it leaves out pairs by the likelihood they will lose",
                got=objective_name(self.objective),
                expected="an objective on pairs or labels of a policy",
                do="Leave it out",
            )

    def _check_samples(self) -> None:
        if self.max_samples is None:
            return
        each = self.sampling.num_completions + (self.collect.opponent != "none")
        first = (self.collect.lag + 1) * (self.collect.prompts or self.batch_size) * each
        if self.max_samples < first:
            raise ConfigError(
                "max_samples does not reach to the first step",
                got=self.max_samples,
                expected=f"at least {first} completions",
                do="Raise it, or lower --batch_size or --collect.prompts",
            )
        if self.collect.fill:
            raise ConfigError(
                "collect.fill draws until a collection is full, which max_samples cannot hold to",
                got=f"max_samples {self.max_samples}",
                do="Leave one out",
            )

    def _check_objective(self) -> None:
        """What the objective needs must be there, and what is set must be of use to it."""
        name, needs, reference = objective_name(self.objective), self.objective.needs, self.reference
        if "behaviour_value" in needs and self.source == "offline":
            raise ConfigError(
                f"{name} needs the critic's values at the time of sampling",
                got="data from a file",
                do="Leave out the clipping of values, or set --source on-policy",
            )
        if "contrast" in needs and reference.contrast_positive is None:
            raise ConfigError(
                f"{name} weights tokens by the contrast of two models",
                got="no models",
                do="Set --reference.contrast_positive MODEL and --reference.contrast_negative MODEL",
            )
        if "contrast" not in needs and reference.contrast_positive is not None:
            raise ConfigError(
                f"reference.contrast_positive has no effect on {name}",
                got=reference.contrast_positive,
                do="Leave it and reference.contrast_negative out",
            )
        anchor = replace(reference, contrast_positive=None, contrast_negative=None)
        if not needs & REFERENCE_SCORES and anchor != ReferenceOptions():
            raise ConfigError(
                "reference has no effect: the objective has no reference",
                got=name,
                do="Leave out --reference",
            )
        wide = sorted(needs & VOCABULARY_SCORES)
        if wide and reference.mode == "cache":
            raise ConfigError(
                f"{name} needs the reference's distribution over the whole vocabulary",
                got="reference.mode cache",
                expected="auto, live or adapter",
                do="Leave out --reference.mode",
            )
