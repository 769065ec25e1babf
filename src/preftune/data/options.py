"""The settings of everything between a data file and groups of tokens. Imports neither torch nor
transformers.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from preftune.errors import ConfigError, check_range

FormatName = Literal[
    "auto",
    "sharegpt",
    "pairs",
    "dialogues",
    "ultrafeedback",
    "ranked",
    "groups",
    "scored",
    "labels",
    "messages_label",
    "completions",
    "prompts",
]
BadRows = Literal["error", "skip"]
Pairing = Literal["all", "best_worst"]
Template = Literal["auto", "chat", "plain"]
Truncation = Literal["error", "drop", "cut_prompt", "cut_completion"]

FIELDS = (
    "prompt",
    "system",
    "history",
    "input",
    "chosen",
    "rejected",
    "probability",
    "completion",
    "completions",
    "answers",
    "label",
    "reward",
    "rewards",
    "ranks",
    "messages",
    "conversations",
    "pairs",
    "probabilities",
    "labels",
    "sources",
)  # what `columns` can fill


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads __dict__
class DataOptions:
    """How data files become groups of tokens.

    Args:
        split: Which split of a hub data set, of a saved data set or of a folder of files to read.
        format: How the rows are laid out; auto finds it from the first rows and reports it.
        columns: Our field name to your column name, for instance {"chosen": "winner", "rejected": "loser"}.
        bad_rows: What to do with a row that cannot be used: stop with an error, or skip it and count it.
        pairing: Which pairs (or labels) to make of the rewards of one prompt: all, or only best against
            worst.
        min_gap: Smallest difference of two rewards that makes a preference, in units of the reward.
        soft_label_temperature: Give pairs that are made of rewards the Bradley-Terry probability
            1 / (1 + exp(-gap / temperature)); in units of the reward. Without it they count as certain.
        template: Render prompts with the tokenizer's chat template or as plain text; auto takes chat if there
            is one.
        truncation: What to do with a group longer than max_length: error, drop it, cut the prompt from its
            left, or cut the completions from their right to the same length. All but error are counted.
        max_length: Most tokens of a prompt and its longest completion together.
        max_rows: Read at most so many rows; all rows when not given.
    """

    split: str = "train"
    format: FormatName = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    bad_rows: BadRows = "error"
    pairing: Pairing = "all"
    min_gap: float = 0.0
    soft_label_temperature: float | None = None
    template: Template = "auto"
    truncation: Truncation = "drop"
    max_length: int = 2048
    max_rows: int | None = None

    def __post_init__(self):
        for name, choices in (
            ("format", FormatName),
            ("bad_rows", BadRows),
            ("pairing", Pairing),
            ("template", Template),
            ("truncation", Truncation),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"The data option {name} is unknown",
                    got=getattr(self, name),
                    expected=" | ".join(get_args(choices)),
                )
        if not self.split:
            raise ConfigError("The data option split is empty", expected='a name such as "train"')
        prefix = "The data option "
        check_range(self, "[0, inf)", "min_gap", prefix=prefix, expected="a number >= 0")
        check_range(self, "(0, inf)", "soft_label_temperature", prefix=prefix)
        check_range(self, "[1, inf)", "max_rows", prefix=prefix)
        if self.max_length < 2:
            raise ConfigError(
                "The data option max_length is too small",
                got=self.max_length,
                expected="at least 2: a prompt token and a completion token",
            )
        unknown = [name for name in self.columns if name not in FIELDS]
        if unknown:
            raise ConfigError(
                "The data option columns names a field that does not exist",
                got=unknown[0],
                expected="one of " + ", ".join(FIELDS),
                do='Write {our field: your column}, as in {"chosen": "winner"}',
            )
