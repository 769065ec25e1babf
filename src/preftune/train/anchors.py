"""The models in addition to the policy: the reference (frozen or following), the behavior policy, a contrast of two
models.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preftune.model.adapters import inject_lora
from preftune.model.cost import Shape, utilisation, work_of
from preftune.model.layout import collate
from preftune.model.load import load_model, resolve_model
from preftune.model.policy import (
    Policy,
    hidden_states,
    in_shards,
    micro_batches,
    model_head,
    score_groups,
    to_device,
)
from preftune.model.proof import choose_layout
from preftune.model.reference import (
    REFERENCE_SCORES,
    VOCABULARY_SCORES,
    ReferenceOptions,
    ReferenceStore,
    RefLogps,
    adapter_off,
    check_equal,
    completion_keys,
    fill_store,
    weights_digest,
)
from preftune.model.scoring import Head
from preftune.progress import Reporter
from preftune.sampling.sample import Blend
from preftune.storage import cache_folder
from preftune.train.models import ModelPlan, Models
from preftune.train.processes import ALONE, Processes
from preftune.types import Group

# Nats per token between two passes that must agree: rounding in another order, far below any real difference.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

GroupLogps = Callable[[Sequence[Group]], RefLogps]
"""A model's logp of the completion tokens of some groups (one micro-batch at most)."""
GroupHidden = Callable[[Sequence[Group]], tuple[Tensor, Head]]
"""A model's hidden states where it predicts these tokens, and its head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchors:
    """Scores of groups under the frozen models; None where the run does not need them."""

    reference: GroupLogps | None = None
    reference_hidden: GroupHidden | None = None
    behaviour: GroupLogps | None = None
    behaviour_value: GroupLogps | None = None  # of the policy's scalar head when it sampled, not a logp
    contrast: GroupLogps | None = None  # log-probability under one model minus that under another
    following: Policy | None = None  # the reference, where it follows the policy
    writer: Blend | None = None  # the reference alone, where it can be drawn from


@dataclass(frozen=True, kw_only=True)
class AnchorPlan:
    """Which frozen models a run needs, and how they score."""

    options: ReferenceOptions
    model: ModelPlan
    on_policy: bool
    temperature: float  # at which the reference is scored


@dataclass(frozen=True, kw_only=True, eq=False)
class AnchorBuilder:
    """Builds all anchors of a run."""

    plan: AnchorPlan
    models: Models
    groups: Sequence[Group] = ()  # all that a cached reference will score
    report: Reporter
    processes: Processes = ALONE

    @property
    def policy(self) -> Policy:
        return self.models.policy

    def build(self, needs: frozenset[str]) -> Anchors:
        """The anchors for what an objective needs. `ref_logp` among it is what evaluation needs at least."""
        if not needs:
            return Anchors()
        options, on_policy = self.plan.options, self.plan.on_policy
        mode = chosen_mode(options, needs, self.plan.model.lora.rank > 0, on_policy)
        held: Policy | None = None
        logps: GroupLogps | None = None
        if mode in ("live", "adapter"):
            held = (
                self._live(options.model, follows=options.update_every > 0) if mode == "live" else self.policy
            )
        if needs & REFERENCE_SCORES:
            logps = (
                self._cached(options.model, "reference")
                if held is None
                else self._computed(held, mode == "adapter")
            )
        behaviour: GroupLogps | None = None
        if "behaviour_logp" in needs and on_policy:
            behaviour = lambda part: [list(group.behaviour_logp) for group in part]  # noqa: E731
        elif "behaviour_logp" in needs:  # data of a file count as sampled by the policy as it starts
            starts = logps is not None and options.model is None and not options.update_every
            behaviour = logps if starts else self._cached(None, "behaviour")
        hidden = (
            self._hidden(held, mode == "adapter") if held is not None and needs & VOCABULARY_SCORES else None
        )
        return Anchors(
            reference=logps,
            reference_hidden=hidden,
            behaviour=behaviour,
            behaviour_value=(lambda part: [list(group.behaviour_value) for group in part])
            if "behaviour_value" in needs
            else None,
            contrast=self._contrast() if "contrast" in needs else None,
            following=held if options.update_every else None,
            writer=None if held is None else _writer(held, mode == "adapter"),
        )

    def _contrast(self) -> GroupLogps:
        options = self.plan.options
        positive = self._cached(options.contrast_positive, "contrast_positive")
        negative = self._cached(options.contrast_negative, "contrast_negative")

        def difference(part: Sequence[Group]) -> RefLogps:
            return [
                [a - b for a, b in zip(one, two, strict=True)]
                for one, two in zip(positive(part), negative(part), strict=True)
            ]

        return difference

    def _model(self, name: str | None) -> tuple[Policy, str]:
        """A named model, or the policy itself as it starts, and the digest of its weights."""
        if name is None:
            return self.policy, self.models.start_digest

        def read() -> tuple[Policy, str]:
            named = self._read(name)
            return named, weights_digest(named.model)

        named, digest = self.processes.models_from_main(read)
        return self._cut(named), digest

    def _read(self, name: str) -> Policy:
        """A named model, still whole."""
        plan, policy = self.plan.model, self.policy
        device = torch.device("cpu") if self.processes.lockstep else policy.device
        model = load_model(resolve_model(name), plan.loading, policy.model.dtype).to(device)  # type: ignore[arg-type]
        sharing, reason = choose_layout(model, plan.layout, plan.precision, device=policy.device)
        return replace(
            policy,
            model=model,
            sharing=sharing,
            sharing_reason=reason,
            peft_model=None,
            value_head=None,
            shards=None,
        )

    def _cut(self, held: Policy) -> Policy:
        """Frozen, and in shards if the policy is."""
        held.model.requires_grad_(False)
        return in_shards(held, self.plan.model.shard, self.policy.device) if self.processes.lockstep else held

    def _cached(self, name: str | None, role: str) -> GroupLogps:
        model, digest = self._model(name)
        layout, report = self.plan.model.layout, self.report
        folder = cache_folder() / "references" / f"{digest[:32]}-{self.plan.model.precision}"
        fresh, started, known = 0, time.perf_counter(), ReferenceStore(folder)
        new = {tuple(completion_keys(group)): group for group in self.groups if group not in known}
        if (
            self.processes.size > 1
        ):  # each computes a share; on one disk all find it there, elsewhere the rest is computed below
            share = self.groups[self.processes.rank :: self.processes.size]
            fresh = fill_store(
                ReferenceStore(folder), model, share, layout, lambda done, of: report.update(role, done, of)
            )
            self.processes.wait()
        store = ReferenceStore(folder)
        fresh += fill_store(store, model, self.groups, layout, lambda done, of: report.update(role, done, of))
        for name in {*known.damaged, *store.damaged}:
            report.note(f"{role}: {name} in the cache was damaged; its numbers are computed again")
        report.note(f"{role}: {fresh} groups computed, {len(self.groups) - fresh} from the cache")
        if new:
            operations = work_of(Shape.of(model.model), [*new.values()]).forward
            share = utilisation(
                operations, time.perf_counter() - started, model.device, model.precision, self.processes.size
            )
            report.note(f"{role}: computed at {share:.0%} of the machine's matrix products")
        self._check_cache(store, model)
        return lambda part: [store.get(group) for group in part]

    def _live(self, name: str | None, follows: bool) -> Policy:
        if name is not None:
            held, _ = self._model(name)
        elif self.processes.lockstep:  # shards cannot be copied

            def read() -> Policy:
                read = self._read(self.plan.model.model)
                if not follows or self.policy.peft_model is None:
                    return read
                return replace(read, peft_model=inject_lora(read.model, self.plan.model.lora))

            held = self._cut(self.processes.models_from_main(read))
            if follows:
                follow(held, self.policy, step=0, options=ReferenceOptions(update_every=1))
        else:
            held = (
                _copy_with_adapter(self.policy)
                if follows
                else replace(self.policy, model=_start_copy(self.policy), peft_model=None, value_head=None)
            )
        held.model.requires_grad_(False)
        return held

    def _computed(self, held: Policy, without_adapter: bool) -> GroupLogps:
        layout, temperature = self.plan.model.layout, self.plan.temperature
        if not without_adapter:
            return lambda part: score_groups(held, part, layout, temperature)

        def off(part: Sequence[Group]) -> RefLogps:
            with adapter_off(held):
                return score_groups(held, part, layout, temperature)

        return off

    def _hidden(self, held: Policy, without_adapter: bool) -> GroupHidden:
        @torch.no_grad()
        def states(part: Sequence[Group]) -> tuple[Tensor, Head]:
            batch = to_device(collate(part, self.plan.model.layout, held.sharing), held.device)

            def work() -> tuple[Tensor, Head]:
                with torch.autocast(held.device.type, torch.bfloat16, enabled=held.precision == "bf16"):
                    found = hidden_states(held.model, batch, held.sharing)[batch.predict_at]
                head = model_head(held.model)
                if held.shards is not None:  # they give the head back after the pass, and it is read later
                    bias = None if head.bias is None else head.bias.clone()
                    head = replace(head, weight=head.weight.clone(), bias=bias)
                return found, head

            return held.run(work)

        def off(part: Sequence[Group]) -> tuple[Tensor, Head]:
            with adapter_off(held):
                return states(part)

        return off if without_adapter else states

    def _check_cache(self, store: ReferenceStore, model: Policy) -> None:
        """Recompute a few groups: a stale or damaged cache, or a policy that is not its own reference, stops
        here.
        """
        plan = self.plan.model
        chosen = np.random.default_rng(plan.seed).permutation(len(self.groups))[:4]
        few = [self.groups[i] for i in chosen]
        for _, part in micro_batches(model, few, plan.layout):
            check_equal(
                [store.get(group) for group in part],
                score_groups(model, part, plan.layout),
                part,
                TOLERANCE[plan.precision],
                "The cached reference differs from the model",
                f"Delete {store.folder} and start again",
            )


def chosen_mode(
    options: ReferenceOptions, needs: frozenset[str], has_adapter: bool, on_policy: bool = False
) -> str:
    """Resolve mode "auto": the cache, unless the reference moves, is needed over the whole vocabulary, or
    scores completions that do not exist yet.
    """
    if options.mode != "auto":
        return options.mode
    if options.update_every or needs & VOCABULARY_SCORES or on_policy:
        return "adapter" if has_adapter and options.model is None and not options.update_every else "live"
    return "cache"


def _writer(held: Policy, without_adapter: bool) -> Blend:
    if without_adapter:  # the policy itself, which who draws has whole already
        return Blend(model=held.model, share=1.0, within=lambda: adapter_off(held))
    return Blend(model=held.model, share=1.0, around=held.whole)


def _start_copy(policy: Policy) -> Any:
    if policy.peft_model is None:
        return copy.deepcopy(policy.model)
    return copy.deepcopy(policy.peft_model).unload()  # the base without its adapter


def _copy_with_adapter(policy: Policy) -> Policy:
    """A copy whose trained weights have the policy's names, so that it can follow them."""
    if policy.peft_model is None:
        return replace(policy, model=copy.deepcopy(policy.model), value_head=None)
    peft_model = copy.deepcopy(policy.peft_model)
    return replace(policy, model=peft_model.get_base_model(), peft_model=peft_model, value_head=None)


@torch.no_grad()
def follow(following: Policy, policy: Policy, step: int, options: ReferenceOptions) -> None:
    """After an optimizer step: reference <- (1 - rate) * reference + rate * policy, every `update_every`
    steps.

    Gorbatovski et al., "Learn Your Reference Model for Real Good Alignment" (TR-DPO), 2024; with update_every
    1 it is an exponential moving average of the policy.
    """
    if step % options.update_every:
        return
    targets = dict(following.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            targets[name].lerp_(parameter, options.update_rate)


def following_tensors(following: Policy | None, policy: Policy) -> dict[str, Tensor]:
    """The weights of a reference that follows: those that train in the policy."""
    if following is None:
        return {}
    moved = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    return {name: p.detach() for name, p in following.model.named_parameters() if name in moved}
