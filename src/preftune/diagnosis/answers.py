"""Answers of a finished run's model, and of the model that it started from, to the prompts that the run held out."""

from typing import Any

from preftune.data.records import load_records
from preftune.diagnosis.run_material import Run
from preftune.errors import ConfigError
from preftune.model.limits import model_limits
from preftune.model.load import load_tokenizer, resolve_model
from preftune.progress import Reporter
from preftune.rewards.questions import prompt_text
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.train.groups import read_data, within
from preftune.types import Record


def held_out_records(run: Run, count: int) -> list[Record]:
    """The first records that the run held out, one for each prompt."""
    config = run.config
    tokenizer = load_tokenizer(resolve_model(run.final), config.loading)
    held = read_data(within(config.data_plan, model_limits(config.model, config.loading)), tokenizer).held
    if not held:
        raise ConfigError(
            f"The run {run.folder} held out nothing",
            got="eval_fraction 0",
            do="Use: preftune eval RUN --prompts FILE",
        )
    records = {one.origin: one for one in load_records(config.eval_data or config.data, config.rows).records}
    found = [records[group.origin] for group in held if group.origin in records]
    return list({prompt_text(one): one for one in reversed(found)}.values())[::-1][:count]


def answer_rows(
    run: Run, step: int, count: int, max_new_tokens: int, report: Reporter
) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: of each prompt the most probable answer before and after training. The reward is null."""
    config, records, rows = run.config, held_out_records(run, count), []
    options = SampleOptions(max_new_tokens=max_new_tokens, temperature=0.0)
    for stage, name in (("before", config.model), ("after", run.final)):
        model, renderer = load_sampler(name, config.loading, config.precision, config.device, config.rows)
        prompts = [renderer.render(record).prompt for record in records]
        drawn = sample(
            model,
            renderer,
            prompts,
            options,
            config.seed,
            lambda done, of, stage=stage: report.update(f"answers {stage}", done, of),
        )
        for index, (record, (answer,)) in enumerate(zip(records, drawn, strict=True)):
            rows.append(
                {
                    "stage": stage,
                    "step": step if stage == "after" else 0,
                    "prompt_index": index,
                    "sample_index": 0,
                    "prompt": prompt_text(record),
                    "completion": answer.text,
                    "reward": None,
                    "ended": answer.ended,
                    "num_tokens": answer.num_scored,
                }
            )
    return rows
