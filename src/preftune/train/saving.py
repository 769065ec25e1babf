"""Saving the model of a run: checkpoints during training, final/ at the end."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from preftune.data.render import make_renderer
from preftune.errors import PreftuneError
from preftune.model.adapter_saving import save_adapter
from preftune.model.classifier import save_reward_model
from preftune.model.policy import Policy, adapter_weights
from preftune.model.shard import full_tensors
from preftune.objectives import State
from preftune.progress import Reporter
from preftune.train.anchors import following_tensors
from preftune.train.checkpoint import (
    Counters,
    LogMark,
    begin_checkpoint,
    checkpoint_folder,
    end_checkpoint,
    save_checkpoint,
    write_shards,
)
from preftune.train.checkpoint_shards import shard_files
from preftune.train.models import load_policy
from preftune.train.runlog import RunFolder
from preftune.train.setup import TrainingJob


def save_state(job: TrainingJob, run: RunFolder, counters: Counters, state: State | None) -> Path:
    """A checkpoint by the main process, the others know where; of a model in shards by all of them together."""
    folder, processes, keep = run.checkpoints, job.processes, job.config.keep_checkpoints
    parameters, following = job.policy.trainable(), following_tensors(job.anchors.following, job.policy)
    extra = {"estimators": dict(state or {}), "source": job.source.state()}
    if job.best is not None:
        extra["best"] = job.best.state()
    if processes.lockstep:
        scratch = processes.from_main(lambda: begin_checkpoint(folder))
        _write_part(job, scratch, parameters, following)
        marks, shards = _marks(run, counters), shard_files(processes.size)
        return processes.from_main(lambda: end_checkpoint(scratch, counters, keep, extra, marks, shards))
    if not processes.is_main:
        return checkpoint_folder(folder, counters.step)
    return save_checkpoint(
        folder,
        parameters,
        job.optimizer,
        counters,
        keep,
        {"reference": following, **extra},
        _marks(run, counters),
    )


def _marks(run: RunFolder, counters: Counters) -> dict[str, LogMark]:
    """Marks of the logs' ends. At step 0 they are empty, because the evaluation of step 0 is repeated."""
    return run.log_marks() if run.writes and counters.step else {}


def _write_part(job: TrainingJob, scratch: Path, parameters, following) -> None:
    """An error of one process is an error of all."""
    failed: PreftuneError | None = None
    try:
        write_shards(scratch, parameters, job.optimizer, following)
    except PreftuneError as error:
        failed = error
    job.processes.agree(failed)


def keep_state(job: TrainingJob, run: RunFolder, counters: Counters, state: State | None) -> Path:
    """Save after checking that no process failed; an error while saving is raised in all processes."""
    if job.processes.lockstep:
        return save_state(job, run, counters, state)
    return job.processes.from_main(lambda: save_state(job, run, counters, state))


def install_final(job: TrainingJob, run: RunFolder) -> None:
    """final/, by the main process; of a model in shards all put its weights together first. critic/ holds a critic
    of its own, as a reward model.
    """
    weights = _whole_weights(job) if job.processes.lockstep else None
    job.processes.from_main(
        lambda: run.install_folder("final", lambda folder: save_final(job, folder, weights))
    )
    if (critic := job.policy.critic) is not None:
        apart = replace(job.policy, model=critic, peft_model=None, critic=None)
        renderer = make_renderer(job.tokenizer, job.config.rows)
        job.processes.from_main(
            lambda: run.install_folder("critic", lambda folder: save_reward_model(apart, renderer, folder))
        )


def _whole_weights(job: TrainingJob) -> dict[str, Tensor]:
    """Gather the tensors that save_final needs from a sharded model, on the CPU of the main process."""
    policy, keep = job.policy, job.processes.is_main
    weights = None if job.config.objective.trains == "reward model" else adapter_weights(policy, keep)
    if weights is None:
        weights = full_tensors(policy.model.state_dict(keep_vars=True), keep)
    head = {} if policy.value_head is None else dict(policy.value_head.named_parameters(prefix="value_head"))
    return weights | full_tensors(head, keep)


def save_final(job: TrainingJob, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """The tuned model in Hugging Face layout, or the adapter in peft's, with tokenizer and template;
    `weights` are those of a model in shards.

    A reward model is saved as a sequence classifier, whole: its head means nothing without the adapter's
    body.
    """
    policy, named = job.policy, None if weights is None else dict(weights)
    head = None if policy.value_head is None else policy.value_head.weight.detach()
    if named is not None and head is not None:
        head = named.pop("value_head.weight")
    if job.config.objective.trains == "reward model":
        whole = policy if named is None or head is None else _put_together(job, named, head)
        renderer = make_renderer(job.tokenizer, job.config.rows)
        save_reward_model(whole, renderer, folder, job.saved)
        return
    if policy.peft_model is not None:
        moved = {name for name, p in policy.peft_model.named_parameters() if p.requires_grad}
        adapter = named or policy.peft_model.state_dict()
        adapter = in_dtype({name: p for name, p in adapter.items() if name in moved}, job.saved)
        save_adapter(policy, folder, adapter)
    else:
        whole_state = in_dtype(named or policy.model.state_dict(), job.saved)
        policy.model.save_pretrained(folder, state_dict=whole_state)
        _name_dtype(folder, whole_state)
    if head is not None and policy.critic is None:
        save_file({"weight": head}, folder / "value_head.safetensors")
    job.tokenizer.save_pretrained(folder)


def in_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in another type; those that are tied stay tied. All stay as they are where one is too large for
    the type, which has nowhere to put it.
    """
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in weights.values():
        place = (weight.data_ptr(), weight.shape)
        if place in cast or not weight.is_floating_point():
            continue
        low = weight.detach().to(dtype)
        if dtype == torch.float16 and not torch.isfinite(low).all() and torch.isfinite(weight).all():
            return dict(weights)
        cast[place] = low
    return {name: cast.get((weight.data_ptr(), weight.shape), weight) for name, weight in weights.items()}


def _name_dtype(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """The type of the saved weights, into the configuration next to them."""
    kinds = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("dtype") and len(kinds) == 1:
            part["dtype"] = str(next(iter(kinds))).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _put_together(job: TrainingJob, weights: Mapping[str, Tensor], head: Tensor) -> Policy:
    """The policy as an ordinary model on the CPU: read once more, with these weights."""
    whole, _ = load_policy(job.config.model_plan, Reporter(quiet=True), lockstep=True)
    assert whole.value_head is not None
    whole.model.load_state_dict(weights)
    with torch.no_grad():
        whole.value_head.weight.copy_(head)
    return whole


def bytes_needed(job: TrainingJob) -> int:
    """final/ and, if any, the checkpoints, with one more while it is written."""
    trained = sum(p.numel() * p.element_size() for p in job.policy.trainable().values())
    every = job.config.save_every
    saved = min(job.config.keep_checkpoints, (job.num_steps - 1) // every) if every else 0
    best = 2 * trained if job.best is not None else 0
    return trained + best + (3 * trained * (saved + 1) if saved else 0)
