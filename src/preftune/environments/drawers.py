"""The answers of rollouts, drawn from a model in this process or by a server."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from preftune.data.render import Renderer
from preftune.environments.rollout import Ask, Drawer
from preftune.sampling.client import ServerOptions
from preftune.sampling.engine import Engine
from preftune.sampling.sample import Blend, DrawnTurn, SampleOptions, sample
from preftune.sampling.sampled import Sampled
from preftune.sampling.server import sample_server_tokens


def local_drawer(
    model: PreTrainedModel,
    renderer: Renderer,
    options: SampleOptions,
    seed: int,
    engine: Engine | None = None,
    blend: Blend | None = None,
) -> Drawer:
    """From a model in this process. First answers share their prompt's computation; later ones have contexts of
    their own, which are computed anew.
    """

    def draw(asks: Sequence[Ask]) -> list[Sampled]:
        firsts = [ask for ask in asks if ask.number == 0]
        each = options.num_completions if asks[0].turn == 0 and len(asks) > len(firsts) else 1
        begun = firsts if each > 1 else asks
        drawn = sample(
            model,
            renderer,
            [ask.context for ask in begun],
            replace(options, num_completions=each),
            seed,
            keys=[ask.key for ask in begun],
            turns=[DrawnTurn(budget=ask.budget, number=ask.number, place=ask.turn) for ask in begun],
            engine=engine,
            blend=blend,
        )
        return [one for ones in drawn for one in ones]

    return draw


def server_drawer(
    server: ServerOptions, renderer: Renderer, options: SampleOptions, seed: int, journal: Path | None = None
) -> Drawer:
    """From a server that takes token ids; one request for each answer."""

    def draw(asks: Sequence[Ask]) -> list[Sampled]:
        drawn = sample_server_tokens(
            server,
            renderer,
            [ask.context for ask in asks],
            replace(options, num_completions=1),
            seed,
            [ask.key for ask in asks],
            turns=[DrawnTurn(budget=ask.budget, number=ask.number, place=ask.turn) for ask in asks],
            journal=journal,
        )
        return [one for ones in drawn for one in ones]

    return draw
