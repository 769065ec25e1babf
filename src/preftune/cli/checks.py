"""Settings of the verbs that are not training."""

from dataclasses import dataclass, field, fields
from typing import Literal

from preftune.data.options import DataOptions
from preftune.model.layout import LayoutOptions
from preftune.errors import ConfigError
from preftune.sampling.client import ServerOptions
from preftune.sampling.sample import SampleOptions
from preftune.model.load import LoadOptions

Precision = Literal["fp32", "bf16"]


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**62:
        raise ConfigError("seed is out of range", got=seed, expected="0 or more, less than 2**62")


def refuse_idle_rows(rows: DataOptions, used: tuple[str, ...], where: str) -> None:
    """Settings of the data that say nothing where only prompts are read."""
    default = DataOptions()
    for option in fields(rows):
        if option.name not in used and getattr(rows, option.name) != getattr(default, option.name):
            raise ConfigError(f"rows.{option.name} has no effect on {where}", got=getattr(rows, option.name),
                              do="Leave it out")  # fmt: skip


_READING = ("split", "format", "columns", "bad_rows", "template", "max_rows")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a data file, as a model's tokeniser sees it.

    Args:
        data: preference data: a file, a folder or a hub id.
        model: whose tokeniser and template to use.
        examples: rows to show.
        json: print JSON.
        rows: how data files become groups of tokens.
        loading: what may be loaded beside plain tensors.
    """

    data: str
    model: str = "smollm2-135m-instruct"
    examples: int = 3
    json: bool = False
    rows: DataOptions = field(default_factory=DataOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ConfigError("examples is out of range", got=self.examples, expected="0 or more")
        if self.json and self.examples != 3:
            raise ConfigError("examples has no effect with json", got=self.examples, do="Leave one out")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Completions of a model: of one prompt, of a file of prompts, or in a chat when neither is given.

    Args:
        model: a run's final/ folder, or any name that `train` takes; with a server, the model whose tokeniser and template
            its model has.
        prompt: one prompt.
        prompts: a data file; only its prompts are used.
        output: write JSON lines {prompt, completions, ended, num_tokens, budget, the other columns of the prompts} here
            instead of printing. With a server, what is drawn is kept in a journal beside it until all is there, and the same
            command goes on from it.
        seed: of the draw.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        json: print JSON lines.
        sampling: how completions are drawn.
        server: draw from an OpenAI-compatible server instead of in this process.
        rows: how data files become groups of tokens.
        loading: what may be loaded beside plain tensors.
    """

    model: str = "smollm2-135m-instruct"
    prompt: str | None = None
    prompts: str | None = None
    output: str | None = None
    seed: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    json: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    rows: DataOptions = field(default_factory=DataOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if self.server.url:
            here = {"precision": self.precision != "fp32", "device": self.device != "auto",
                    "sampling.sample_batch": self.sampling.sample_batch != SampleOptions().sample_batch}  # fmt: skip
            for name in [name for name, given in here.items() if given]:
                raise ConfigError(f"{name} has no effect on a server", got=f"server.url {self.server.url}", do="Leave it out")
        if self.prompt is not None and self.prompts is not None:
            raise ConfigError("prompt and prompts exclude each other", got="both", expected="one of them")
        if self.output is not None and self.prompts is None:
            raise ConfigError("output has no effect without prompts", got=self.output, do="Add --prompts FILE")
        if self.json and self.prompt is None and self.prompts is None:
            raise ConfigError("json has no effect in a chat", got="neither prompt nor prompts",
                              do="Add --prompt TEXT or --prompts FILE")  # fmt: skip
        if self.sampling.num_completions > 1 and self.prompt is None and self.prompts is None:
            raise ConfigError("num_completions has no effect in a chat", got=self.sampling.num_completions,
                              do="Add --prompt TEXT or --prompts FILE")  # fmt: skip
        check_seed(self.seed)
        if self.prompts is None:
            refuse_idle_rows(self.rows, ("template",), "a prompt that is typed")
        else:
            refuse_idle_rows(self.rows, _READING, "prompts")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How good a model is: on preference data by its log-ratios to a reference, on prompts by a reward of its samples.

    Args:
        model: the model to judge.
        data: preference data with pairs.
        prompts: a data file; only its prompts are used.
        reference: what to compare with: the anchor of log-ratios, and the model "before" on prompts; for the final/ of a
            run, what it started from, when not given.
        reward: on prompts: a built-in reward, module:function or a weighted sum; docs/rewards.md lists them.
        output: on prompts: a folder for samples.jsonl.
        beta: on pairs: the implicit reward is beta * log-ratio.
        seed: of the draw.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        json: print JSON.
        sampling: how completions are drawn.
        rows: how data files become groups of tokens.
        layout: how groups are laid out for the model.
        loading: what may be loaded beside plain tensors.
    """

    model: str
    data: str | None = None
    prompts: str | None = None
    reference: str | None = None
    reward: str | None = None
    output: str | None = None
    beta: float | None = None
    seed: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    json: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.prompts is None):
            raise ConfigError("eval wants preference data or prompts", got="both" if self.data else "neither",
                              expected="--data FILE or --prompts FILE")  # fmt: skip
        if self.data is not None:
            given = {"reward": self.reward, "output": self.output}
            idle = [name for name, value in given.items() if value is not None]
            if self.sampling != SampleOptions():
                idle.append("sampling")
            if self.seed:
                idle.append("seed")
            if idle:
                raise ConfigError(f"{idle[0]} has no effect on preference data", got="--data", do="Use --prompts FILE")
        elif self.reward is None:
            raise ConfigError("prompts are judged by a reward", got="none", expected="--reward NAME or module:function")
        elif self.beta is not None or self.layout != LayoutOptions():
            raise ConfigError("beta and layout have no effect on prompts", got="--prompts", do="Leave them out")
        if self.beta is not None and not self.beta > 0:
            raise ConfigError("beta is out of range", got=self.beta, expected="a number above 0")
        check_seed(self.seed)
        if self.prompts is not None:
            refuse_idle_rows(self.rows, _READING, "prompts")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw the page of a run again, or of several over one another.

    Args:
        runs: run folders.
        output: the page of several runs.
        json: print the path as JSON.
    """

    runs: list[str]
    output: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("report wants a run folder", got="none", expected="preftune report RUN [RUN ...]")
        if len(self.runs) > 1 and self.output is None:
            raise ConfigError("Several runs need a page of their own", got="no output", do="Add --output FILE.html")
        if len(self.runs) == 1 and self.output is not None:
            raise ConfigError("output has no effect for one run", got=self.output, do="Its page is RUN/report.html")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole way in small: sample, reward, tune with BNF, compare before and after on held-out prompts.

    Args:
        output: a new folder.
        overwrite: delete an earlier demo in that folder first.
        model: the model to tune.
        seed: of every draw and order.
        num_prompts: training prompts to use, of those that preftune ships.
        num_held_out: held-out prompts to use.
        learning_rate: peak learning rate.
        epochs: passes over the sampled completions.
        batch_size: prompts per step.
        json: print JSON.
        sampling: how completions are drawn, for training and for the comparison.
    """

    output: str = "preftune-demo"
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    seed: int = 0
    num_prompts: int = 192
    num_held_out: int = 96
    learning_rate: float = 2e-6
    epochs: float = 1.0
    batch_size: int = 4
    json: bool = False
    sampling: SampleOptions = field(
        default_factory=lambda: SampleOptions(num_completions=4, max_new_tokens=64, temperature=0.8)
    )

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("epochs", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is out of range", got=getattr(self, name), expected="a number above 0")
        if self.sampling.num_completions < 2:
            raise ConfigError("num_completions is too small for a preference", got=self.sampling.num_completions,
                              expected="at least 2")  # fmt: skip
