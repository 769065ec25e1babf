"""The settings of everything between a data file and groups of tokens. Imports neither torch nor
transformers.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from preftune.data.column_map import parse_columns, rules_of
from preftune.errors import ConfigError, check_range

FormatName = Literal[
    "auto",
    "sharegpt",
    "pairs",
    "dialogues",
    "verdicts",
    "ultrafeedback",
    "ranked",
    "groups",
    "indexed",
    "scored",
    "labels",
    "messages_label",
    "completions",
    "prompts",
    "best_first",
    "stepwise",
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
    "reasoning_content",
    "completions",
    "answers",
    "label",
    "reward",
    "rewards",
    "ranks",
    "messages",
    "conversations",
    "best",
    "worst",
    "pairs",
    "probabilities",
    "labels",
    "sources",
    "winner",
    "response_a",
    "response_b",
    "ended",
    "tools",
    "chat_template_kwargs",
)  # what `columns` can fill


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads __dict__
class DataOptions:
    """How data files become groups of tokens.

    Args:
        split: Which split of a hub data set, of a saved data set or of a folder of files to read.
        format: How the rows are laid out; auto finds it from the first rows and reports it.
        columns: Which of your columns is which field: label=thumbs_up; prompt=input.messages (inside an object);
            prompt=context+question (joined); label=thumbs{up:1,down:-1} (what values mean; >= and <= work for
            numbers). Several are separated by commas. JSON works too: {"chosen": "winner"}.
        ignore: Columns, separated by commas, that are left out although they look like preference information.
        bad_rows: What to do with a row that cannot be used: stop with an error, or skip it and count it.
        pairing: Which pairs (or labels) to make of the rewards of one prompt: all, or only best against
            worst.
        min_gap: Smallest difference of two rewards that makes a preference, in units of the reward.
        soft_label_temperature: Give pairs that are made of rewards the Bradley-Terry probability
            1 / (1 + exp(-gap / temperature)); in units of the reward. Without it they count as certain.
        template: Render prompts with the tokenizer's chat template or as plain text; auto takes chat if there
            is one.
        chat_template: A file with a Jinja chat template, or the name of one that comes with preftune (qwen3, qwq,
            r1-distill, llama-3). It replaces the model's template and is saved with the trained model.
        chat_template_kwargs: Variables for the chat template, for instance {"enable_thinking": false}. A row's
            column chat_template_kwargs overrides them.
        truncation: What to do with a group longer than max_length: error, drop it, cut the prompt from its
            left, or cut the completions from their right to the same length. All but error are counted.
        max_length: Most tokens of a prompt and its longest completion together.
        max_rows: Number of rows to read at most; all rows when not given.
        streaming: Read a data set of the hub row by row, without a copy of it on disk.
    """

    split: str = "train"
    format: FormatName = "auto"
    columns: dict[str, Any] | str = field(default_factory=dict)
    ignore: list[str] | str = field(default_factory=list)
    bad_rows: BadRows = "error"
    pairing: Pairing = "all"
    min_gap: float = 0.0
    soft_label_temperature: float | None = None
    template: Template = "auto"
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    truncation: Truncation = "drop"
    max_length: int = 2048
    max_rows: int | None = None
    streaming: bool = False

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
        if self.template == "plain" and (self.chat_template is not None or self.chat_template_kwargs):
            raise ConfigError(
                "The data options chat_template and chat_template_kwargs have no effect on plain text",
                got="template plain",
                expected="template auto or chat",
                do="Leave one of them out",
            )
        columns = parse_columns(self.columns, FIELDS)
        names = self.ignore.split(",") if isinstance(self.ignore, str) else self.ignore
        ignore = [name.strip() for name in names if name.strip()]
        object.__setattr__(self, "columns", columns)  # both in their usual form, as they go into config.yaml
        object.__setattr__(self, "ignore", ignore)
        for rule in rules_of(columns):
            for column in rule.columns:
                if column in ignore:
                    raise ConfigError(
                        "A column is both used and ignored",
                        got=column,
                        expected="one of the data options columns and ignore",
                    )
