"""Short forms, other tools' names and mistakes, answered before anything heavy is imported."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from preftune.cli.help import help_text
from preftune.cli.main import VERBS, main
from preftune.cli.model_settings import ModelSettings
from preftune.cli.outline import objective_outlines, outline_of
from preftune.cli.words import prepared
from preftune.commands.diagnose_data import DiagnoseDataConfig
from preftune.commands.eval_options import EvalConfig
from preftune.commands.iterate import IterateConfig
from preftune.commands.sample import SampleConfig
from preftune.commands.train_reward_model import RewardModelConfig
from preftune.diagnosis.run_material import DiagnoseRunConfig
from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES
from preftune.train.options import TrainConfig
from tests.fresh import run_fresh

MISTAKES = [
    ("trian", "Unknown command 'trian'. Did you mean preftune train?"),
    ("generate", "Use: preftune sample"),
    ("plot RUN", "Use: preftune report RUN"),
    ("list", "Use: preftune objectives"),
    ("train --patience 3 --data pairs.csv --nope 1", "Unknown option --nope"),
    ("train --num_gpus 2", "torchrun"),
    ("train --hub_model_id me/x", "--to hub"),
    ("export RUN --format gguf", "--to gguf"),
    ("sample RUN --temp 0 --nope 1", "Unknown option --nope"),
    ("train --learning_rte 1", "Unknown option --learning_rte. Did you mean --learning_rate?"),
    ("train --learning-rte 1", "Did you mean --learning_rate?"),
    ("train --objective dop", "Unknown objective 'dop'. Did you mean dpo?"),
    ("train dop", "Did you mean --objective dpo?"),
    ("train --gamma 0.5", "objective bnf, which has no gamma; expected an objective that has it"),
    ("train --push_to_hub", "preftune export RUN --to hub"),
    ("train --wandb", "--report_to wandb"),
    ("train --resume_from_checkpoint r", "Use: preftune train --resume RUN"),
    ("train --deepspeed x", "--shard.mode full"),
    ("train --mask_truncated_completions true", "Truncated completions"),
    ("train --gradient_accumulation_steps 4", "Use --batch_size"),
    ("train --lr", "--lr has no value"),
    ("train --nonsense_of_mine 1", "Unknown option --nonsense_of_mine. Give --help"),
    ("sample a b", "Unexpected argument 'b'"),
    ("objectives --jsn", "Did you mean --json?"),
    ("train --help optimm", "Did you mean optim?"),
]


@pytest.mark.parametrize(("line", "told"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_answered_with_what_leads_on(line, told, capsys):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and not out


def test_mistakes_and_help_import_no_library():
    code = (
        "import sys, preftune.cli.main as cli\n"
        "assert cli.main(['train', '--lerning_rate', '1']) == 2\n"
        "assert cli.main(['train', '--objective', 'dop']) == 2\n"
        "assert cli.main(['train', '--help']) == 0 and cli.main(['train', '--help', 'all']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'yaml', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run_fresh(code)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--lr 1e-4", ["--optim.learning_rate", "1e-4"]),
        ("--lora", ["--lora.rank", "16"]),
        ("--lora 8", ["--lora.rank", "8"]),
        ("--lora=8", ["--lora.rank=8"]),
        ("--lora --lr 1", ["--lora.rank", "16", "--optim.learning_rate", "1"]),
        ("--method dpo", ["--objective", "dpo"]),
        ("--loss DPO", ["--objective", "dpo"]),
        ("--objective=CPO_SimPO", ["--objective=cpo-simpo"]),
        ("--objective simpo --gamma 0.5", ["--objective", "simpo", "--objective.gamma", "0.5"]),
        ("--objective 0.7*dpo+0.3*sft", ["--objective", "mixture", "--objective.terms", "0.7*dpo+0.3*sft"]),
        ("--objective mine:Loss", ["--objective", "mine:Loss"]),
        ("--val_split 0.1", ["--eval_fraction", "0.1"]),
        ("--gradient_checkpointing", ["--gradient_checkpointing", "true"]),
        ("--gradient_checkpointing false", ["--gradient_checkpointing", "false"]),
        ("--max-steps 400", ["--max_steps", "400"]),
        ("dpo", ["--objective", "dpo"]),
        (
            "dpo pairs.jsonl --lr 1",
            ["--objective", "dpo", "--data", "pairs.jsonl", "--optim.learning_rate", "1"],
        ),
        ("--config x.yaml --print_config", ["--config", "x.yaml", "--print_config"]),
        ("--resume run", ["--resume", "run"]),
        ("--dry-run --json", ["--dry-run", "--json"]),
    ],
)
def test_short_forms_are_spelled_out(line, wanted):
    assert prepared("train", line.split()) == wanted


def test_the_first_word_is_a_model_where_that_is_natural():
    assert prepared("sample", ["runs/dpo", "--prompt", "hi"]) == ["--model", "runs/dpo", "--prompt", "hi"]
    assert prepared("eval", ["m", "--data", "d"]) == ["--model", "m", "--data", "d"]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("train", TrainConfig),
        ("eval", EvalConfig),
        ("sample", SampleConfig),
        ("iterate", IterateConfig),
        ("train_reward_model", RewardModelConfig),
        ("diagnose_data", DiagnoseDataConfig),
        ("diagnose_run", DiagnoseRunConfig),
    ],
)
def test_the_outline_is_what_the_settings_are(command, kind):
    """The syntax trees have the same names as the classes themselves, each with a help text. Settings that a
    command shares with others come last.
    """
    outline = outline_of(command)
    assert outline is not None
    told = [one.name for one in outline.settings]
    assert len(told) == len(set(told))
    hints, real = get_type_hints(kind), set()
    for field in fields(kind):
        section = hints[field.name]
        nested = is_dataclass(section) and field.name != "objective"
        real |= {f"{field.name}.{one.name}" for one in fields(section)} if nested else {field.name}
    assert set(told) == real
    if issubclass(kind, ModelSettings):
        assert told[0] not in get_type_hints(ModelSettings)
    assert not [one.name for one in outline.settings if not one.help]


def test_objectives_and_their_hyperparameters_are_those_of_the_table():
    outlines = objective_outlines()
    assert set(outlines) == set(OBJECTIVES)
    for name, kind in OBJECTIVES.items():
        assert [one.leaf for one in outlines[name]] == [one.name for one in fields(kind)], name


@pytest.mark.parametrize("verb", [verb for verb in VERBS if outline_of(verb.replace("-", "_"))])
def test_help_comes_in_layers(verb):
    short, whole = help_text(verb, ["--help"]), help_text(verb, ["--help", "all"])
    outline = outline_of(verb.replace("-", "_"))
    assert short is not None and whole is not None and outline is not None
    assert all(f"--{one.name} " in whole for one in outline.settings)
    assert short.count("\n") <= 130 and max(map(len, short.split("\n"))) <= 130
    for section in outline.sections:
        text = help_text(verb, ["--help", section])
        assert text is not None and all(
            f"--{one.name} " in text for one in outline.settings if one.section == section
        )


def test_help_of_an_objective_shows_its_hyperparameters():
    assert "--objective.gamma " in (help_text("train", ["--objective", "simpo", "--help"]) or "")


def test_a_section_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match="There is no section or setting 'nothing'"):
        help_text("train", ["--help", "nothing"])


def test_bare_words_of_train_name_the_model_and_the_data(tmp_path):
    model, data = tmp_path / "tiny", tmp_path / "pairs.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    data.write_text("")
    words = prepared("train", ["dpo", str(model), str(data), "--output", "run"])
    assert words[:6] == ["--objective", "dpo", "--model", str(model), "--data", str(data)]
    assert prepared("train", ["smollm2-135m-instruct"])[:2] == ["--model", "smollm2-135m-instruct"]
    with pytest.raises(ConfigError, match="--data is given twice"):
        prepared("train", [str(data), str(data)])
