"""Training runs. The package itself can be called: `preftune.train(config)` is `preftune.train.loop.train`."""

import sys
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from preftune.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _TrainPackage
