"""From files to groups, counted; and the files that users really have."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from preftune.data.data_report import Lengths
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.records import load_records, write_bad_rows
from preftune.errors import ConfigError, DataError, StorageError
from tests.data import tokenizers_for_tests as made

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
REAL = {
    # file: (format, rows, records, signal, pairs or labels)
    "pairs_sharegpt_300.json": ("sharegpt", 300, 300, "pairs", 300),
    "labels_messages_300.json": ("messages_label", 300, 300, "labels", 300),
    "hh_harmless_base_test.jsonl.gz": ("dialogues", 2312, 2308, "pairs", 2308),
}


@pytest.fixture(scope="module")
def chat():
    return made.byte_tokenizer(made.CHATML, eos="<|im_end|>")


def shared(name):
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the repository")
    return SHARED / name


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


PAIR = {"prompt": "Hello", "chosen": "I am fine", "rejected": "The sea"}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load_with_the_defaults(name):
    form, rows, records, _, _ = REAL[name]
    loaded = load_records(shared(name), DataOptions())
    assert (loaded.format, loaded.num_rows, len(loaded.records), loaded.bad_rows) == (form, rows, records, ())
    assert loaded.dropped == ({"empty completion": 4} if form == "dialogues" else {})


@pytest.mark.parametrize("name", REAL)
def test_real_files_become_groups(name, chat):
    _, _, _, signal, count = REAL[name]
    prepared = prepare(shared(name), chat, signal, DataOptions(max_length=100_000))
    assert (prepared.report.num_groups, prepared.report.fitted) == (count, {"whole": count})
    for record, group in zip(prepared.records, prepared.groups, strict=True):
        assert record.origin == group.origin
        for text, ids in zip(record.completions, group.completions, strict=True):
            assert chat.decode(ids) == text + "<|im_end|>"


def test_the_transcripts_of_hh_become_dialogues():
    records = load_records(shared("hh_harmless_base_test.jsonl.gz"), DataOptions()).records
    for record in records:
        roles = [message.role for message in record.prompt]
        assert (
            roles == ["user" if k % 2 == 0 else "assistant" for k in range(len(roles))]
            and roles[-1] == "user"
        )
        assert not any("\n\nHuman:" in text or "\n\nAssistant:" in text for text in record.completions)


def test_everything_is_counted(tmp_path, chat):
    rows = [PAIR, {**PAIR, "rejected": "I am fine"}, "{broken", {**PAIR, "prompt": "Hello " * 400}, PAIR]
    path = write(tmp_path / "a.jsonl", rows)
    prepared = prepare(path, chat, "pairs", DataOptions(bad_rows="skip", max_length=300))
    report = prepared.report
    assert (report.num_rows, report.num_bad, report.num_groups, report.num_pairs) == (5, 1, 2, 2)
    assert report.dropped_rows == {"chosen and rejected are equal": 1}
    assert report.fitted == {"whole": 2, "dropped: too long": 1}
    for kept in (prepared.groups, prepared.records):
        assert [each.origin for each in kept] == [f"{path}:1", f"{path}:5"]
    lengths = [len(group.prompt) + sum(map(len, group.completions)) for group in prepared.groups]
    assert report.num_tokens == sum(lengths)
    told = "\n".join(report.lines())
    for words in (
        "5 rows, format pairs, chat template",
        "skipped 1 rows",
        "dropped 1 rows: chosen and rejected",
        "1 groups dropped: too long",
        "2 groups, 4 completions, 2 pairs",
    ):
        assert words in told
    assert json.loads(json.dumps(report.as_dict()))["derived"]["num_pairs"] == 3


def test_bad_rows_are_written(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR, "{broken", {"prompt": "x"}])
    prepared = prepare(path, chat, "pairs", DataOptions(bad_rows="skip"))
    write_bad_rows(tmp_path / "bad_rows.jsonl", prepared.bad_rows)
    lines = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [(str(path), 2), (str(path), 3)]
    assert "broken JSON" in lines[0]["message"]
    with pytest.raises(StorageError, match="list of bad rows"):
        write_bad_rows(path / "bad_rows.jsonl", prepared.bad_rows)


def test_a_row_that_the_template_refuses_is_a_bad_row(tmp_path):
    gemma = made.byte_tokenizer(made.GEMMA)
    path = write(tmp_path / "a.jsonl", [PAIR, {**PAIR, "system": "Be brief"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*refuses.*bad_rows"):
        prepare(path, gemma, "pairs", DataOptions())
    prepared = prepare(path, gemma, "pairs", DataOptions(bad_rows="skip"))
    assert (len(prepared.groups), [bad.row for bad in prepared.bad_rows]) == (1, [2])


def test_the_template_option_is_felt(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR])
    (plain,) = prepare(path, chat, "pairs", DataOptions(template="plain")).groups
    (rendered,) = prepare(path, chat, "pairs", DataOptions()).groups
    assert chat.decode(plain.prompt) == "Hello"
    assert chat.decode(rendered.prompt) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_signals_of_one_file(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR])
    groups = {
        signal: prepare(path, chat, signal, DataOptions()).groups[0]
        for signal in ("pairs", "labels", "rewards")
    }
    assert groups["pairs"].pairs == ((0, 1),) and groups["pairs"].labels == ()
    assert groups["labels"].labels == (1, -1) and groups["labels"].pairs == ()
    assert groups["rewards"].rewards == (1.0, 0.0)
    as_it_is = prepare(path, chat, None, DataOptions()).groups[0]
    assert as_it_is.pairs == ((0, 1),)
    (prompts,) = prepare(path, chat, "prompts", DataOptions()).groups
    assert prompts.completions == () and prompts.prompt.tolist() == as_it_is.prompt.tolist()
    with pytest.raises(ConfigError, match="pairing, min_gap and soft_label_temperature have no effect"):
        prepare(path, chat, "prompts", DataOptions(min_gap=1.0))


def test_probabilities_of_some_pairs(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [{**PAIR, "probability": 0.75}, PAIR, {**PAIR, "probability": 0}])
    prepared = prepare(path, chat, "pairs", DataOptions())
    assert [group.probabilities for group in prepared.groups] == [(0.75,), (1.0,), (0.0,)]
    assert "2 of 3 pairs have a probability, the others count as certain" in prepared.report.lines()
    all_known = prepare(path, chat, "pairs", DataOptions(max_rows=1)).report.lines()
    assert "1 of 1 pairs have a probability" in all_known
    assert not any(
        "have a probability" in line for line in prepare(path, chat, "labels", DataOptions()).report.lines()
    )
    assert prepare(path, chat, None, DataOptions()).groups[1].probabilities == ()
    assert prepare(path, chat, "prompts", DataOptions()).records[0].probabilities == ()


def test_the_soft_label_temperature_is_felt(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [{"prompt": "Hi", "completions": ["a", "b"], "rewards": [0, 1]}])
    options = DataOptions(soft_label_temperature=0.5)
    (group,) = prepare(path, chat, "pairs", options).groups
    assert group.probabilities == pytest.approx((0.880797078,))  # 1 / (1 + e^-2)
    with pytest.raises(ConfigError, match="soft_label_temperature have no effect"):
        prepare(path, chat, "prompts", options)


def test_hybrid_rows_of_one_file(tmp_path, chat):
    path = write(
        tmp_path / "a.jsonl",
        [
            {
                "prompt": "Hello",
                "completions": ["I am", "fine", "the sea", "a poem"],
                "pairs": [[0, 1]],
                "sources": ["data", "reference", "policy", "data"],
            },
            {"prompt": "Hi", "completions": ["blue", "wide"], "pairs": [], "sources": ["policy", "policy"]},
        ],
    )
    prepared = prepare(path, chat, "hybrid", DataOptions())
    assert [group.sources for group in prepared.groups] == [(0, 2, 1), (1, 1)]
    assert [group.pairs for group in prepared.groups] == [((0, 1),), ()]
    assert "3 completions of the policy are in no pair" in prepared.report.lines()
    assert not any("policy" in line for line in prepare(path, chat, "pairs", DataOptions()).report.lines())
    (prompts, _) = prepare(path, chat, "prompts", DataOptions()).records
    assert prompts.sources == ()


def test_truncation_options_are_felt(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [{**PAIR, "prompt": "Hello " * 10, "chosen": "one " * 20}, PAIR])
    kinds = {"drop": "dropped: too long", "cut_prompt": "prompt cut", "cut_completion": "completions cut"}
    whole = prepare(path, chat, "pairs", DataOptions()).groups[0]
    limit = len(whole.prompt) + max(map(len, whole.completions)) - 5
    for truncation, kind in kinds.items():
        options = DataOptions(max_length=limit, truncation=truncation)
        assert prepare(path, chat, "pairs", options).report.fitted == {kind: 1, "whole": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:1: the row is longer"):
        prepare(path, chat, "pairs", replace(options, truncation="error"))


def test_no_group_left_says_why(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR])
    with pytest.raises(DataError, match=r"no group is left; got 1 groups dropped: too long"):
        prepare(path, chat, "pairs", DataOptions(max_length=2))


def test_quantiles_are_lengths_that_occur():
    assert Lengths.of([5, 1, 9]) == Lengths(min=1, median=5, p95=9, max=9)
    assert Lengths.of([]) == Lengths(min=0, median=0, p95=0, max=0)
