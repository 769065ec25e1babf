"""The verb `train-reward-model`: Bradley-Terry on pairs, then how right and how sure the saved model is on
held-out pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from preftune.cli.checks import resumed_folder, take_switch
from preftune.cli.model_settings import ModelSettings
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings, settings_from_run
from preftune.data.files import located, read_file
from preftune.data.step_rows import StepRow, step_rows
from preftune.errors import ConfigError, DataError, check_range, refuse_idle
from preftune.measures.calibration import Calibration, calibrate
from preftune.model.adapters import LoraOptions
from preftune.model.classifier import scores_of
from preftune.model.device import pick_device
from preftune.model.layout import LayoutOptions
from preftune.model.limits import model_limits
from preftune.model.load import load_tokenizer, resolve_model
from preftune.model.whole_model import quiet_transformers
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.stepwise import Stepwise
from preftune.stats import json_numbers
from preftune.storage import write_jsonl
from preftune.terminal import clean_terminal
from preftune.text import interval_text
from preftune.train.groups import DataPlan, read_data, within
from preftune.train.loop import resume, train
from preftune.train.models import ModelPlan
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from preftune.train.result import RunResult
from preftune.train.runlog import RunFolder, check_output
from preftune.types import Group

EVALUATION_FILE = "reward_evaluation"


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(ModelSettings):
    """A reward model out of preference pairs.

    Args:
        data: preference data: a file, a folder or a hub id.
        output: the run folder, which must not hold anything yet.
        model: the language model whose body the reward model takes.
        margin: by which the better completion should win, >= 0.
        centring: >= 0, pulls the rewards to 0, which preferences do not determine.
        heads: how many scalar heads the body gets, an ensemble if above 1: each is trained on all pairs from its
            own random start.
        process: train on labels or values of the steps of answers: a process reward model. The data are rows of
            {prompt, completions, rewards_steps}, of TRL's stepwise layout, of Math-Shepherd or of PRM800K; beginnings
            of answers with their numbers are written to OUTPUT.steps.jsonl.
        step_loss: with process: "logistic" for labels and chances in [0, 1], "squared" for any number.
        num_bins: of the reliability table.
        eval_data: held-out pairs, in any format that `data` may have.
        eval_fraction: without `eval_data`, the share of prompts held out of `data`; 0 turns evaluation off.
        batch_size: prompts per step.
        epochs: passes over the data.
        max_steps: optimizer steps, in place of `epochs`: the data are gone over as often as that takes.
        eval_every: steps between evaluations on held-out data; a tenth of the run when not given.
        save_every: steps between checkpoints; 0 saves one only when the run is interrupted.
        keep_checkpoints: how many of the latest checkpoints stay.
        precision: "fp32", or "bf16": bf16 arithmetic and frozen weights; optim.weights sets the type of trained
            weights.
        keep_best: save the weights of the evaluation that was best by this held-out metric; true is the loss.
        early_stopping_patience: with keep_best: stop after this number of evaluations without an improvement.
        save_dtype: of the saved weights: "bf16", "fp16", "fp32", or "auto": as in the model's files.
        gradient_checkpointing: compute each layer again in backward: less memory, about a third more time.
        router_aux_loss_coef: of a mixture of experts: coefficient of the auxiliary loss that balances the load of
            the experts; the model's own when not given, 0 leaves the loss out.
        seed: of the data order, the held-out split and the adapters' start.
        layout: how groups are laid out for the model.
        optim: the optimizer and its schedule.
        lora: low-rank adapters; they are merged into the saved model.
    """

    data: str
    output: str
    model: str = "smollm2-135m-instruct"
    margin: float = 0.0
    centring: float = 0.01
    heads: int = 1
    process: bool = False
    step_loss: Literal["logistic", "squared"] = "logistic"
    num_bins: int = 10
    eval_data: str | None = None
    eval_fraction: float = 0.1
    batch_size: int = 8
    epochs: float = 1.0
    max_steps: int | None = None
    eval_every: int | None = None
    save_every: int = 0
    keep_checkpoints: int = 1
    keep_best: str | bool | None = None
    early_stopping_patience: int | None = None
    save_dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    router_aux_loss_coef: float | None = None
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "num_bins")
        if self.eval_data is None and self.eval_fraction == 0:
            refuse_idle(
                self,
                "without held-out data",
                "num_bins",
                do="Set --eval_fraction or --eval_data, or leave num_bins out",
            )
        if self.process:
            names = ("margin", "centring", "heads")
            refuse_idle(self, "with labels of steps", *names, do="Leave it out: it is of pairs")
        else:
            refuse_idle(
                self, "without labels of steps", "step_loss", do="Add --process true, or leave it out"
            )
        self.run_settings()

    def run_settings(self) -> TrainConfig:
        """The same as settings of `train`, which checks them."""
        mine = {f.name for f in fields(self)}
        shared = {f.name: getattr(self, f.name) for f in fields(TrainConfig) if f.name in mine}
        if not self.process:
            pairs = BradleyTerry(margin=self.margin, centring=self.centring, heads=self.heads)
            return TrainConfig(objective=pairs, **shared)
        shared["data"] = steps_file(self.output, "steps")
        if self.eval_data is not None:
            shared["eval_data"] = steps_file(self.output, "eval_steps")
        return TrainConfig(objective=Stepwise(loss=self.step_loss), **shared)


def steps_file(output: str, name: str) -> str:
    """Where the beginnings of answers are written, next to the run folder."""
    return f"{output.rstrip('/')}.{name}.jsonl"


def write_steps(source: str, output: str, loss: str) -> int:
    """The beginnings of a file's answers, each with its number; returns how many."""
    count = 0

    def rows() -> Iterator[StepRow]:
        nonlocal count
        for raw in read_file(Path(source), None):
            if isinstance(raw.value, DataError):
                raise raw.value
            try:
                found = list(step_rows(raw.value))
            except DataError as error:
                raise located(source, raw.number, error) from error
            for row in found:
                wrong = [number for number in row["rewards"] if not 0 <= number <= 1]
                if wrong and loss == "logistic":
                    raise DataError(
                        f"{source}, row {raw.number}: a value of a step is no chance",
                        got=wrong[0],
                        expected="a number in [0, 1]",
                        do="Add --step_loss squared",
                    )
                count += len(row["rewards"])
                yield row

    write_jsonl(Path(output), rows(), "write the beginnings of answers")
    if not count:
        raise DataError(f"{source} holds no step with a label", got="0 steps", expected="at least one")
    return count


def evaluate_reward_model(
    folder: Path,
    groups: Sequence[Group],
    *,
    device: str = "auto",
    micro_batch_tokens: int = 384,
    num_bins: int = 10,
    seed: int = 0,
) -> Calibration:
    """Accuracy and calibration of a saved reward model on groups with pairs, scored by plain transformers in
    fp32; of an ensemble, those of the mean of its heads.
    """
    model: Any = (
        AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .to(pick_device(device))
    )
    sequences = [np.concatenate([group.prompt, ids]) for group in groups for ids in group.completions]
    process = not any(group.pairs for group in groups)  # of beginnings with their numbers
    scores = scores_of(model, sequences, micro_batch_tokens).mean(1)
    margins, clusters, chances, start = [], [], [], 0
    for index, group in enumerate(groups):
        if process:
            margins += list(scores[start : start + len(group.completions)])
            clusters += [index] * len(group.completions)
            chances += [float(reward) for reward in group.rewards if reward is not None]
        margins += [scores[start + c] - scores[start + r] for c, r in group.pairs]
        clusters += [index] * len(group.pairs)
        chances += group.probabilities or (1.0,) * len(group.pairs)
        start += len(group.completions)
    return calibrate(margins, clusters, chances, num_bins=num_bins, seed=seed)


def train_reward_model(settings: RewardModelConfig) -> tuple[RunResult, Calibration | None]:
    """A new run, and the evaluation of what it saved; no evaluation if it was interrupted or nothing is held
    out.
    """
    config = settings.run_settings()
    if settings.process:
        check_output(settings.output)
        write_steps(settings.data, config.data, settings.step_loss)
        if settings.eval_data is not None and config.eval_data is not None:
            write_steps(settings.eval_data, config.eval_data, settings.step_loss)
    result = train(config, quiet=settings.json)
    return _evaluated(result, config.model_plan, config.data_plan, settings.num_bins)


def resume_reward_model(
    folder: str, *, quiet: bool = False, allowed: frozenset[str] = frozenset(), skip_damaged: bool = False
) -> tuple[RunResult, Calibration | None]:
    """Resume a run; of a finished one that has no evaluation yet, make it. `allowed` and `skip_damaged` are those
    of `train --resume`.
    """
    run = RunFolder(path=Path(folder))
    if not (run.path / "config.yaml").is_file():
        raise ConfigError(
            f"{folder} is not a run folder", got="no config.yaml in it", expected="what --output made"
        )
    config = replace(settings_from_run(TrainConfig, run.path), output=folder)
    if config.objective.trains != "reward model":
        raise ConfigError(
            f"{folder} is no run of a reward model", do=f"Continue with: preftune train --resume {folder}"
        )
    if run.state() != "finished" or (run.path / f"{EVALUATION_FILE}.json").is_file():
        result = resume(config, quiet=quiet, allowed=allowed, skip_damaged=skip_damaged)
    else:
        result = RunResult(folder=run.path, final=run.final, step=0, state="finished", evaluation={})
    return _evaluated(result, config.model_plan, config.data_plan, num_bins=10)


def _evaluated(
    result: RunResult, model: ModelPlan, data: DataPlan, num_bins: int
) -> tuple[RunResult, Calibration | None]:
    """Evaluate the reward model on the held-out pairs of its run, where there are any."""
    if result.final is None or (isinstance(data.objective, Stepwise) and data.objective.loss == "squared"):
        return result, None  # the held-out loss of training is the evaluation of numbers
    tokenizer = load_tokenizer(resolve_model(model.model), model.loading)
    held = read_data(within(data, model_limits(model.model, model.loading)), tokenizer).held
    if not held:
        return result, None
    calibration = evaluate_reward_model(
        result.final,
        held,
        device=model.device,
        micro_batch_tokens=model.layout.micro_batch_tokens,
        num_bins=num_bins,
        seed=model.seed,
    )
    run = RunFolder(path=result.folder)
    run.write_json(f"{EVALUATION_FILE}.json", json_numbers(calibration))
    run.write_text(f"{EVALUATION_FILE}.md", "\n".join(evaluation_page(calibration)) + "\n")
    return result, calibration


def evaluation_page(found: Calibration) -> list[str]:
    """The evaluation as Markdown, which reads well in a terminal too."""
    lines = [
        f"# Reward model on {found.num_pairs} held-out pairs of {found.num_prompts} prompts",
        "",
        "| quantity | value (95% interval) | of a model that knows nothing |",
        "|---|---|---|",
        f"| accuracy | {interval_text(found.accuracy)} | 0.5 |",
        f"| Brier score | {interval_text(found.brier)} | 0.25 |",
        f"| loss, nats | {interval_text(found.nll)} | 0.693 |",
        f"| expected calibration error | {interval_text(found.ece)} | 0 |",
        "",
        "| confidence | pairs | mean confidence | accuracy |",
        "|---|---|---|---|",
    ]
    for one in found.bins:
        means = (
            "- | -"
            if one.confidence is None or one.accuracy is None
            else f"{one.confidence:.3f} | {one.accuracy:.3f}"
        )
        lines.append(f"| {one.low:.2f} to {one.high:.2f} | {one.num_pairs} | {means} |")
    return lines


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    as_json, words = take_switch(arguments, "json")
    folder = resumed_folder(words, "train-reward-model")
    if folder is not None:
        result, found = resume_reward_model(folder, quiet=as_json)
    else:
        settings = parse_settings(RewardModelConfig, arguments, "preftune train-reward-model")
        as_json = settings.json
        result, found = train_reward_model(settings)
    return tell_reward_model(result, found, as_json)


def tell_reward_model(result: RunResult, found: Calibration | None, as_json: bool) -> int:
    """Print the result of a run; returns the exit status."""
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "final": result.final and str(result.final),
                "state": result.state,
                "evaluation": found and json_numbers(found),
            }
        )
    elif result.final:
        print(
            "\n".join(evaluation_page(found))
            if found
            else "nothing is held out, so nothing is known of its accuracy"
        )
        print(
            clean_terminal(f"\nreward model  {result.final}\nreport        {result.folder / 'report.html'}")
        )
    return 0 if result.state == "finished" else 130
