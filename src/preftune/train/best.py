"""The best weights of a run by a metric on held-out data, and when to stop because it no longer improves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preftune.errors import ConfigError, StorageError, storage_error
from preftune.model.shard import full_tensors, like
from preftune.text import plural
from preftune.train.processes import Processes

_LOWER = ("loss", "kl", "no_reward")
_HIGHER = ("reward", "rewards/accuracies", "rewards/margins", "rewards/chosen", "completions/ended")
LATER = ("length_correlation", "length_bias")
"""Metrics that an untrained policy does not have."""
SAMPLED_METRICS = ("reward", "no_reward", "kl", "entropy", "completions/length", "completions/ended")
"""Metrics of evaluations that draw completions."""


@runtime_checkable
class Trained(Protocol):
    """What has weights that train: a policy."""

    def trainable(self) -> dict[str, nn.Parameter]: ...


@dataclass(frozen=True, kw_only=True)
class BestMetric:
    """A held-out metric and its direction."""

    name: str
    sign: int  # 1 where higher is better, -1 where lower is better

    @staticmethod
    def of(text: str | bool, usual: str) -> "BestMetric":
        """`text` is a name, "max:NAME" or "min:NAME", or true for the `usual` metric; "eval_" before a name is
        ignored.
        """
        text = usual if text is True or str(text).lower() == "true" else str(text)
        way, colon, name = text.rpartition(":")
        name = name.removeprefix("eval_")
        if colon and way in ("max", "min") and name:
            return BestMetric(name=name, sign=1 if way == "max" else -1)
        if not colon and name in _LOWER + _HIGHER:
            return BestMetric(name=name, sign=1 if name in _HIGHER else -1)
        raise ConfigError(
            "keep_best names a metric whose better direction is not known",
            got=text,
            expected=", ".join((*_HIGHER, *_LOWER)),
            do=f"Write max:{name} or min:{name} for another held-out metric",
        )


@dataclass(kw_only=True)
class BestWeights:
    """What the evaluations so far have shown. The best weights lie in a file, which a resumed run finds again."""

    metric: BestMetric
    patience: int | None
    folder: Path
    checkpoints: int  # how many the run keeps
    processes: Processes
    step: int = -1  # of the best weights
    value: float = math.nan
    last: int = -1  # step of the latest evaluation
    stale: int = 0  # evaluations since the best one
    kept: list[int] = field(default_factory=list)  # steps whose files a checkpoint needs, latest last

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as the patience allows have brought nothing better."""
        return self.patience is not None and self.stale >= self.patience

    def see(self, step: int, metrics: Mapping[str, float], policy: Trained) -> None:
        """An evaluation of these weights; by all processes."""
        if step <= self.last:  # a resumed run repeats its latest evaluation where the log lost it
            return
        name, self.last = self.metric.name, step
        if name not in metrics and self.step < 0 and name not in LATER:
            raise self.unknown(metrics)
        value = metrics.get(name, math.nan)
        if self.step >= 0 and not self.metric.sign * (value - self.value) > 0 and not math.isnan(self.value):
            self.stale += 1
            return
        self.step, self.value, self.stale = step, value, 0
        trained = policy.trainable()
        weights = full_tensors(trained, self.processes.is_main)
        self.processes.from_main(lambda: self._write(weights))

    def unknown(self, metrics: Mapping[str, float]) -> ConfigError:
        return ConfigError(
            "keep_best names no metric of this run's evaluations",
            got=self.metric.name,
            expected=", ".join(sorted(metrics)),
        )

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        target = self._file(self.step)
        scratch = target.with_suffix(".writing")
        try:
            self.folder.mkdir(exist_ok=True)
            save_file({name: value.contiguous() for name, value in weights.items()}, scratch)
            scratch.replace(target)
            for path in self.folder.glob("step-*.safetensors"):
                if int(path.stem.removeprefix("step-")) not in (*self.kept, self.step):
                    path.unlink()
        except OSError as error:
            raise storage_error("write the best weights", self.folder, error) from error

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint, which from now on needs the file of the best weights."""
        self.kept = [*self.kept, self.step][-self.checkpoints - 1 :]
        counts = torch.tensor([self.step, self.last, self.stale], dtype=torch.int64)
        return {"counts": counts, "value": torch.tensor(self.value, dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As `state` left it."""
        self.step, self.last, self.stale = (int(count) for count in tensors["counts"])
        self.value = float(tensors["value"])
        files = sorted(self.folder.glob("step-*.safetensors"))
        self.kept = [int(path.stem.removeprefix("step-")) for path in files][-self.checkpoints - 1 :]
        self.kept.append(self.step)
        if self.step >= 0 and not self._file(self.step).is_file():
            raise StorageError(
                "The best weights of the run are gone",
                expected=str(self._file(self.step)),
                do="Start the run again with another --output",
            )

    @torch.no_grad()
    def put_back(self, policy: Trained) -> None:
        """The best weights into the policy; by all processes."""
        weights = load_file(self._file(self.step))
        for name, parameter in policy.trainable().items():
            parameter.copy_(like(weights[name], parameter))

    def clear(self) -> None:
        """The file is in final/ now."""
        for path in self.folder.glob("step-*"):
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()

    def summary(self) -> dict[str, float | int | str]:
        return {"metric": self.metric.name, "value": self.value, "step": self.step}

    @property
    def line(self) -> str:
        """For a person, at the end."""
        why = f", and {plural(self.stale, 'evaluation')} brought nothing better" if self.exhausted else ""
        return f"kept the weights of step {self.step}: held-out {self.metric.name} {self.value:.4f}{why}"
