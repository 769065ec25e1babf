"""Files and runs that were misread or failed once, by the command that showed it: read right, or refused with why."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from preftune.cli.main import main
from preftune.model.load import LoadOptions, load_model
from tests.data import tokenizers_for_tests as made
from tests.data.published_templates import PHI3, tokenizer_of
from tests.folders import save_tiny_model, write_rows
from tests.models import model_sizes

FACTS = [
    ("Name a fruit.", "An apple.", "A stone."),
    ("Name a metal.", "Iron.", "Water."),
    ("Name a river.", "The Rhine.", "A hill."),
    ("Name a planet.", "Mars.", "A shoe."),
]
NAMES = ("prompt", "chosen", "rejected")
SCRATCH = made.CHATML.replace("m['content']", "m['content'].split('</scratchpad>')[-1]")
THOUGHTS = made.CHATML.replace(
    "m['content']", "('[plan] ' + m['thinking'] + ' [/plan]\n' if m['thinking'] else '') + m['content']"
)


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def each(make):
    """One row for each fact."""
    return [make(*fact) for fact in FACTS]


def both(make):
    """Two rows for each fact: the good answer and the bad one."""
    return [row for ask, good, bad in FACTS for row in (make(ask, good, True), make(ask, bad, False))]


def hh(ask, answer=""):
    return f"\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: {ask}\n\nAssistant:{answer}"


PAIRS = each(lambda *fact: dict(zip(NAMES, fact, strict=True)))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of tiny models, by the kind of their tokenizer and template."""
    folder = tmp_path_factory.mktemp("tokenizers")
    kinds = {
        "chatml": made.byte_tokenizer(made.CHATML, eos="<|im_end|>"),
        "scratch": made.byte_tokenizer(SCRATCH, eos="<|im_end|>"),
        "thoughts": made.byte_tokenizer(THOUGHTS, eos="<|im_end|>"),
        "phi3": tokenizer_of(PHI3, "</s>"),
        "pieces": made.byte_tokenizer(made.CHATML.replace("<|im_end|>", "<|done|>"), eos="</s>"),
        "words": made.word_tokenizer(made.MISTRAL),
        "words, plain": made.word_tokenizer(None),
    }
    for name, tokenizer in kinds.items():
        config = LlamaConfig(vocab_size=len(tokenizer), **model_sizes(), head_dim=8)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def written(path, content):
    """A file of the kind that the name says: text as it is, rows as JSON lines or Parquet."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        write_rows(path, content)
    return path


def inspected(capsys, path, model, *flags):
    """(exit status, what is said without line breaks, the error)"""
    status = main(["inspect", str(path), "--model", str(model), *flags])
    said = capsys.readouterr()
    return status, said.out, " ".join(said.err.split())


SYSTEM = {"system": "", "status": "ok"}
FIRST = "An apple.<|im_end|>"
READ = {
    "6, a column input": (
        "a.jsonl",
        each(lambda a, g, b: {**SYSTEM, "input": a, "chosen": f"It is {g}", "rejected": f"It is {b}"}),
        "user\nName a fruit.<|im_end|>",
    ),
    "6, a column query": (
        "a.jsonl",
        each(lambda a, g, b: {"query": a, "chosen": f"Sure: {g}", "rejected": f"Sure, {b}"}),
        "user\nName a fruit.<|im_end|>",
    ),
    "10, turns in a CSV file": (
        "a.csv",
        'prompt,chosen,rejected\nName a fruit.,"[{""role"": ""assistant"", ""content"": ""An apple.""}]",A stone.\n',
        FIRST,
    ),
    "11, Nectar": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "prompt": hh(a, " "),
                "answers": [{"answer": b, "rank": 2.0}, {"answer": g, "rank": 1.0}],
            }
        ),
        "assistant\nHello.<|im_end|>\n<|im_start|>user\nName a fruit.",
    ),
    "11, Dahoas": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": hh(a), "response": f" {g}", "chosen": f" {g}", "rejected": f" {b}"}),
        "tokens\nAn apple.<|im_end|>",
    ),
    "12, an instruction with a context": (
        "a.jsonl",
        each(lambda a, g, b: {"instruction": "Answer.", "context": a, "chosen": g, "rejected": b}),
        "Answer.\nName a fruit.",
    ),
    "15, labels of one class": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": a, "completion": b, "label": False}),
        "census: 4 dispreferred",
    ),
    "24, HelpSteer2": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": a, "response_1": g, "response_2": b, "preference_strength": -2}),
        f"chosen, 9 tokens\n{FIRST}",
    ),
    "24, PKU": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "prompt": a,
                "response_0": b,
                "response_1": g,
                "better_response_id": 1,
                "safer_response_id": 1,
            }
        ),
        f"chosen, 9 tokens\n{FIRST}",
    ),
    "24, arena": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "prompt": json.dumps([a]),
                "response_a": json.dumps([g]),
                "response_b": json.dumps([b]),
                "winner_model_a": 1,
                "winner_model_b": 0,
                "winner_tie": 0,
            }
        ),
        f"chosen, 9 tokens\n{FIRST}",
    ),
    "24, labels of a list": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": a, "completions": [g, b], "labels": [True, False]}),
        "census: 4 preferred, 4 dispreferred",
    ),
    "24, HelpSteer3": (
        "a.jsonl",
        each(
            lambda a, g, b: {"context": [user(a)], "response1": g, "response2": b, "overall_preference": -2}
        ),
        f"chosen, 9 tokens\n{FIRST}",
    ),
    "24, an object of lists": (
        "a.parquet",
        each(
            lambda a, g, b: {
                "instruction": a,
                "completions": {"response": [g, b], "overall_score": [9.0, 1.0]},
            }
        ),
        f"reward 9, 9 tokens\n{FIRST}",
    ),
    "24, blanks in the header": (
        "a.csv",
        "prompt, chosen, rejected\nName a fruit.,An apple.,A stone.\n",
        f"chosen, 9 tokens\n{FIRST}",
    ),
    "25, OpenAI": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "input": {"messages": [user(a)], "tools": []},
                "preferred_output": [bot(g)],
                "non_preferred_output": [bot(b)],
            }
        ),
        "census: 4 pairs",
    ),
    "25, several rejected responses": (
        "a.jsonl",
        each(lambda a, g, b: {"messages": [user(a), bot(g)], "rejected_response": [b, f"{b} Or so."]}),
        "census: 8 pairs",
    ),
    "25, a list of rejected texts": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": a, "chosen": g, "rejected": [b, f"{b} Or so."]}),
        "census: 8 pairs",
    ),
    "25, a repeated user turn": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "prompt": [user("continue")],
                "chosen": [bot("Part one."), user("continue"), bot(g)],
                "rejected": [bot("Part one."), user("continue"), bot(b)],
            }
        ),
        "census: 4 pairs",
    ),
    "25, empty tools": (
        "a.jsonl",
        each(lambda a, g, b: {"tools": "[]", "prompt": a, "chosen": g, "rejected": b}),
        "tools (used as tools)",
    ),
    "25, an empty prompt beside dialogues": (
        "a.jsonl",
        each(lambda a, g, b: {"prompt": "", "chosen": [user(a), bot(g)], "rejected": [user(a), bot(b)]}),
        "user\nName a fruit.",
    ),
    "25, a score of null": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "instruction": a,
                "completions": [
                    {"response": g, "overall_score": 8.5},
                    {"response": b, "overall_score": None},
                ],
            }
        ),
        "4 rewarded, 4 not rewarded",
    ),
    "25, a score of N/A": (
        "a.jsonl",
        each(
            lambda a, g, b: {
                "instruction": a,
                "completions": [
                    {"response": g, "overall_score": "8.5"},
                    {"response": b, "overall_score": "N/A"},
                ],
            }
        ),
        "4 rewarded, 4 not rewarded",
    ),
    "25, a decimal reward": (
        "a.parquet",
        both(
            lambda a, text, good: {
                "prompt": a,
                "completion": text,
                "reward": Decimal("1.5") if good else Decimal("0.5"),
            }
        ),
        "reward 1.5",
    ),
    "25, a reward of true and false": (
        "a.jsonl",
        both(lambda a, text, good: {"prompt": a, "completion": text, "reward": good}),
        "reward 1,",
    ),
    "25, a table of columns": (
        "a.json",
        {name: [fact[k] for fact in FACTS] for k, name in enumerate(NAMES)},
        "census: 4 pairs",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read(case, tokenizers, tmp_path, capsys):
    name, content, words = READ[case]
    status, said, error = inspected(capsys, written(tmp_path / name, content), tokenizers / "chatml")
    assert (status, error) == (0, "") and words in said


RENDERED = {
    "8, thoughts": (
        "thoughts",
        each(
            lambda a, g, b: {
                "prompt": [user(a)],
                "chosen": [bot(g, thinking="I compare.")],
                "rejected": [bot(b, thinking="Seen.")],
            }
        ),
        "[plan] I compare. [/plan]\nAn apple.<|im_end|>",
    ),
    "18, an end before the end of the sequence": ("phi3", PAIRS, "An apple.<|end|>\n"),
    "19, an end of several tokens": ("pieces", PAIRS, "An apple.<|done|>\n"),
    "20, blanks": ("words", PAIRS, "tokens\n The "),
    "21, a prompt that ends in a blank": (
        "words, plain",
        each(lambda a, g, b: {"prompt": f"{a} ", "chosen": g, "rejected": b}),
        "tokens\n An apple.</s>",
    ),
}


@pytest.mark.parametrize("case", RENDERED)
def test_an_answer_is_rendered_whole(case, tokenizers, tmp_path, capsys):
    kind, rows, words = RENDERED[case]
    status, said, error = inspected(capsys, write_rows(tmp_path / "a.jsonl", rows), tokenizers / kind)
    assert (status, error) == (0, "") and words in said


TRAIN = ["--max_steps", "1", "--batch_size", "4", "--eval_fraction", "0"]
REFUSED = {
    "4, is_good": (
        "bnf",
        both(lambda a, text, good: {"prompt": a, "completion": text, "is_good": good}),
        "the column is_good is not used.*--rows.columns label=is_good",
    ),
    "4, HelpSteer2": (
        "bnf",
        both(
            lambda a, text, good: {
                "prompt": a,
                "response": text,
                "helpfulness": 4 * good,
                "correctness": 4 * good,
            }
        ),
        "the columns helpfulness, correctness are not used",
    ),
    "12, a question with a context": (
        "dpo",
        each(lambda a, g, b: {"question": a, "context": "A passage.", "chosen": g, "rejected": b}),
        r"prompt=context\+question",
    ),
    "13, a rendered prompt": (
        "dpo",
        each(
            lambda a, g, b: {
                "prompt": f"<|im_start|>user\n{a}<|im_end|>\n<|im_start|>assistant\n",
                "chosen": g,
                "rejected": b,
            }
        ),
        "already rendered.*--rows.template plain",
    ),
    "14, three labels": (
        "bnf",
        [{"prompt": a, "completion": g, "label": k % 3 - 1} for k, (a, g, _) in enumerate(FACTS)],
        "holds 0 and -1, and 0 could mean",
    ),
    "24, a pair and a label": (
        "dpo",
        each(lambda a, g, b: {"prompt": a, "chosen": g, "rejected": b, "label": 0}),
        "the column label is not used",
    ),
    "25, a list of outputs": (
        "bnf",
        each(lambda a, g, b: {"instruction": a, "input": "", "output": [g, b]}),
        "--rows.format best_first",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_is_refused_with_the_flag_that_resolves_it(case, tiny_folder, tmp_path, capsys):
    objective, rows, words = REFUSED[case]
    data = write_rows(tmp_path / "a.jsonl", rows)
    words_ = ["train", "--data", data, "--objective", objective, "--model", str(tiny_folder)]
    assert main([*words_, *TRAIN, "--output", str(tmp_path / "run")]) == 2
    assert_matches(words, capsys)


def assert_matches(words, capsys):
    with pytest.raises(ValueError, match=words):
        raise ValueError(" ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("case", "name", "content", "kind", "words"),
    [
        (
            "7",
            "a.jsonl",
            each(lambda a, g, b: {"prompt": a, "chosen": f"<scratchpad>Hm.</scratchpad>{g}", "rejected": b}),
            "scratch",
            "does not write the whole text of the answer",
        ),
        (
            "8",
            "a.jsonl",
            each(
                lambda a, g, b: {
                    "prompt": [user(a)],
                    "chosen": [bot(g, thinking="Hm.")],
                    "rejected": [bot(b)],
                }
            ),
            "chatml",
            "does not write the reasoning of the answer",
        ),
        (
            "10",
            "a.csv",
            "prompt,chosen,rejected\nHi,\"[{'role': 'assistant', 'content': 'Yes.'}]\",No.\n",
            "chatml",
            "turns as Python writes them",
        ),
    ],
)
def test_a_file_is_not_read_halfway(case, name, content, kind, words, tokenizers, tmp_path, capsys):
    status, _, error = inspected(capsys, written(tmp_path / name, content), tokenizers / kind)
    assert status == 2 and words in error


def test_9_other_splits_than_train_are_listed(tokenizers, tmp_path, capsys):
    for name in ("train_easy", "train_hard", "test_easy"):
        write_rows(tmp_path / f"{name}.jsonl", PAIRS)
    status, _, error = inspected(capsys, tmp_path, tokenizers / "chatml")
    assert status == 2 and "no split train; got the splits test_easy, train_easy, train_hard" in error
    assert inspected(capsys, tmp_path, tokenizers / "chatml", "--rows.split", "train_easy")[0] == 0


# --- runs ---


def train(data, model, output, *words):
    return main(["train", "--data", str(data), "--model", str(model), *words, "--output", str(output)])


@pytest.mark.parametrize(
    "row",
    [
        lambda a, g, b: {"messages": [user(a), bot(g)], "rejected_messages": [user(a), bot(b)]},
        lambda a, g, b: {"prompt": a, "response": g, "rejected_response": b},
    ],
)
def test_5_both_sides_are_learned_from(row, tiny_folder, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", each(row))
    assert train(data, tiny_folder, tmp_path / "run", "--objective", "bnf", *TRAIN) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text(encoding="utf-8"))
    assert report["census"] == {"pairs": 4} and report["num_completions"] == 8


@pytest.mark.parametrize(("label", "objective"), [(False, "bnf"), (True, "kto")])
def test_15_one_class_is_a_warning(label, objective, tiny_folder, tmp_path, capsys):
    rows = each(lambda a, g, b: {"prompt": a, "completion": g, "label": label})
    data = write_rows(tmp_path / "a.jsonl", rows)
    assert train(data, tiny_folder, tmp_path / "run", "--objective", objective, *TRAIN) == 0
    words = rf"warning: all 4 labels are {'.1' if label else '-1'}, so {objective} only"
    assert_matches(words, capsys)
    report = json.loads((tmp_path / "run" / "data_report.json").read_text(encoding="utf-8"))
    assert report["warning"] in report["lines"] and report["warning"].startswith("warning: all 4 labels")


def test_the_columns_of_the_held_out_file_are_accounted_for(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "a.jsonl", PAIRS)
    held = write_rows(tmp_path / "b.jsonl", [{**row, "lang": "en"} for row in PAIRS[:2]])
    words = ["--objective", "dpo", "--eval_data", held, *TRAIN[:4]]
    assert train(data, tiny_folder, tmp_path / "run", *words) == 0
    assert_matches(r"eval_data: \S*b.jsonl: 2 rows, format pairs.*eval_data: columns not used: lang", capsys)
    report = json.loads((tmp_path / "run" / "data_report.json").read_text(encoding="utf-8"))
    assert report["eval_data"]["columns"]["lang"] == "not used"
    assert report["eval_data"]["census"] == {"pairs": 2}


def test_17_a_token_without_an_embedding_is_named(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    tokenizer = made.byte_tokenizer(made.CHATML, eos="<|im_end|>")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(model)
    data = write_rows(tmp_path / "a.jsonl", [*PAIRS, {**PAIRS[0], "chosen": "<|new|> An apple."}])
    assert train(data, model, tmp_path / "run", "--objective", "dpo", *TRAIN) == 2
    assert_matches(rf"a.jsonl:5: the model has no embedding.*token {rows} .*<.new.>", capsys)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (9, ["--batch_size", "4", "--eval_fraction", "0"]),
        (9, ["--batch_size", "4"]),
        (17, ["--batch_size", "8"]),
        (16, ["--batch_size", "8", "--eval_fraction", "0", "--dry-run"]),
    ],
)
def test_26_and_27_a_remainder_of_one_row_is_no_obstacle_to_kto(count, words, tiny_folder, tmp_path):
    rows = [
        {"prompt": f"Name thing {k}.", "completion": f"It is {k}.", "label": k % 2 == 0} for k in range(count)
    ]
    data = write_rows(tmp_path / "a.jsonl", rows)
    assert train(data, tiny_folder, tmp_path / "run", "--objective", "kto", *words) == 0


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    """The adapter of a run of one step."""
    folder = tmp_path_factory.mktemp("adapter")
    data = write_rows(folder / "a.jsonl", PAIRS)
    assert train(data, tiny_folder, folder / "run", "--objective", "dpo", "--lora.rank", "4", *TRAIN) == 0
    return folder / "run" / "final"


def moved(adapter, folder):
    """(how many tensors of a run's model differ from those that the adapter began with, how many there are)"""
    start = load_model(str(adapter), LoadOptions()).state_dict()
    end = load_file(folder / "final" / "model.safetensors")
    shared = [name for name in start if name in end]
    return sum(not torch.allclose(start[name], end[name]) for name in shared), len(shared)


def test_1_all_weights_of_an_adapter_s_model_train(adapter, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", PAIRS)
    words = ["--objective", "dpo", "--learning_rate", "0.01", *TRAIN]
    assert train(data, adapter, tmp_path / "run", *words) == 0
    changed, count = moved(adapter, tmp_path / "run")
    assert changed == count == 21


def test_2_the_body_of_a_reward_model_trains_from_an_adapter(adapter, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", PAIRS)
    words = ["train-reward-model", "--data", data, "--model", str(adapter), "--learning_rate", "0.01"]
    steps = ["--max_steps", "4", "--epochs", "4", "--batch_size", "4", "--eval_fraction", "0"]
    assert main([*words, *steps, "--output", str(tmp_path / "run")]) == 0
    changed, count = moved(adapter, tmp_path / "run")
    assert changed == count == 20  # the head is new


def test_3_the_policy_of_ppo_trains_from_an_adapter(adapter, tmp_path):
    data = write_rows(tmp_path / "a.jsonl", [{"prompt": ask} for ask, _, _ in FACTS])
    words = [
        "--source",
        "on-policy",
        "--objective",
        "ppo",
        "--reward",
        "regex(pattern='[a-b]')",
        "--learning_rate",
        "0.01",
    ]
    sampling = ["--sampling.num_completions", "4", "--sampling.max_new_tokens", "8"]
    assert train(data, adapter, tmp_path / "run", *words, *sampling, *TRAIN) == 0
    changed, count = moved(adapter, tmp_path / "run")
    assert changed == count == 21


def test_16_tied_embeddings_have_no_adapter(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), encoding="utf-8")
    data = write_rows(tmp_path / "a.jsonl", PAIRS)
    words = ["--objective", "dpo", "--lora.rank", "4", "--lora.target_modules", "[embed_tokens]", *TRAIN]
    assert train(data, model, tmp_path / "run", *words) == 2
    assert_matches("the embedding and the head of this model are one matrix", capsys)


def test_22_a_tie_is_half_right(tiny_folder, tmp_path, capsys):
    data = write_rows(tmp_path / "a.jsonl", PAIRS)
    words = ["eval", "--model", str(tiny_folder), "--reference", str(tiny_folder), "--data", data, "--json"]
    assert main(words) == 0
    accuracy = json.loads(capsys.readouterr().out)["intervals"]["rewards/accuracies"]
    assert accuracy["mean"] == 0.5 and 0 <= accuracy["low"] < 0.5 < accuracy["high"] <= 1
