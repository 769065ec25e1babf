"""preftune: fine-tune language models on preference data.

The names below are imported when they are first used, so that `import preftune` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preftune.api.calls import compare_methods as compare
    from preftune.api.calls import diagnose
    from preftune.api.calls import evaluate_model as evaluate
    from preftune.api.calls import sample_model as sample
    from preftune.api.results import ResultTable
    from preftune.errors import PreftuneError
    from preftune.model.load import load_model, load_tokenizer
    from preftune.model.policy import Policy, score_all
    from preftune.model.scorer import load_scorer
    from preftune.model.whole_model import LoadOptions
    from preftune.objectives import OBJECTIVES, Objective, losses
    from preftune.report.read import read_run
    from preftune.sampling.sample import SampleOptions
    from preftune.train.loop import resume, train
    from preftune.train.options import TrainConfig
    from preftune.train.result import RunResult

__version__ = "0.1.0"

_MODULES = {
    "PreftuneError": "errors",
    "ResultTable": "api.results",
    "LoadOptions": "model.whole_model",
    "load_model": "model.load",
    "load_tokenizer": "model.load",
    "Policy": "model.policy",
    "score_all": "model.policy",
    "load_scorer": "model.scorer",
    "OBJECTIVES": "objectives",
    "Objective": "objectives",
    "read_run": "report.read",
    "SampleOptions": "sampling.sample",
    "RunResult": "train.result",
    "resume": "train.loop",
    "TrainConfig": "train.options",
}
"""Name -> the module that defines it. `train` is not in it: the package of this name can be called."""

_CALLS = {
    "sample": "sample_model",
    "evaluate": "evaluate_model",
    "diagnose": "diagnose",
    "compare": "compare_methods",
}
"""Name -> the function of `preftune.api.calls`."""

__all__ = [
    "OBJECTIVES",
    "LoadOptions",
    "Objective",
    "Policy",
    "PreftuneError",
    "ResultTable",
    "RunResult",
    "SampleOptions",
    "TrainConfig",
    "compare",
    "diagnose",
    "evaluate",
    "load_model",
    "load_scorer",
    "load_tokenizer",
    "losses",
    "read_run",
    "resume",
    "sample",
    "score_all",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("preftune.train")
    if name in _CALLS:
        return getattr(importlib.import_module("preftune.api.calls"), _CALLS[name])
    if name == "losses":
        return importlib.import_module("preftune.objectives.losses")
    if name not in _MODULES:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"preftune.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
