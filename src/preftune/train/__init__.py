"""Training runs. The package itself can be called: `preftune.train(config)` with a TrainConfig, or
`preftune.train(model, data, objective="dpo", beta=0.1, output="runs/dpo")` with keywords.
"""

import sys
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from preftune.train.call import train_with
        from preftune.train.loop import train
        from preftune.train.options import TrainConfig

        with_config = (bool(args) and isinstance(args[0], TrainConfig)) or "config" in kwargs
        return (train if with_config else train_with)(*args, **kwargs)


sys.modules[__name__].__class__ = _TrainPackage
