"""Every layout that people have is read right, or refused with the reason; no column is passed over."""

import json

import pytest

from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.records import LoadedRecords, load_records
from preftune.errors import DataError
from tests.data.layouts import BAD, DOCS, END, GOOD, LAYOUTS, START, VARIANTS, Layout, bot, user, with_table
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer


def turn(role, content):
    return {"role": role, "content": content}


def load(tmp_path, rows, **options) -> LoadedRecords:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_records(path, DataOptions(**options))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
def test_every_layout(tmp_path, layout: Layout):
    if layout.refused:
        with pytest.raises(DataError, match=layout.refused):
            load(tmp_path, [layout.row], **layout.options)
        return
    if layout.drop:
        with pytest.raises(DataError, match=layout.drop):
            load(tmp_path, [layout.row], **layout.options)
        return
    loaded = load(tmp_path, [layout.row], **layout.options)
    (record,) = loaded.records
    assert loaded.format == layout.format
    texts = [text if isinstance(text, str) else text[-1].content for text in record.completions]
    assert {(texts[i], texts[j]) for i, j in record.pairs} == layout.pairs
    assert dict(zip(texts, record.labels, strict=False)) == layout.labels
    assert dict(zip(texts, record.rewards, strict=False)) == layout.rewards
    prompt = record.prompt
    assert (prompt if isinstance(prompt, str) else prompt[-1].content) == layout.prompt
    assert (
        (prompt[0].content if prompt[0].role == "system" else "") == layout.system if layout.system else True
    )
    if not layout.options:
        assert set(loaded.columns) >= layout.row.keys() - {"tools"}  # every column has a role


def test_the_table_of_the_page_is_up_to_date():
    text = DOCS.read_text(encoding="utf-8")
    assert START in text and END in text
    assert with_table(text) == text, "run python -m tests.data.layouts"
    assert {layout.title for layout in LAYOUTS} > VARIANTS


def test_a_transcript_with_single_line_breaks_is_turns(tmp_path):
    rows = [
        {"prompt": "Human: Hi\nAssistant: Hello\nHuman: So?\nAssistant:", "chosen": " yes", "rejected": " no"}
    ]
    (record,) = load(tmp_path, rows).records
    assert [turn.content for turn in record.prompt] == ["Hi", "Hello", "So?"]
    assert record.completions == ("yes", "no")


def test_tool_roles_of_ms_swift(tmp_path):
    call = json.dumps({"name": "weather", "arguments": {"town": "Ghent"}})
    turns = [
        user(),
        turn("tool_call", call),
        turn("tool_call", call),
        turn("tool_response", "rain"),
        bot(GOOD),
    ]
    (record,) = load(tmp_path, [{"messages": turns, "rejected_response": BAD}]).records
    assert [turn.role for turn in record.prompt] == ["user", "assistant", "tool"]
    assert [made.name for made in record.prompt[1].tool_calls] == ["weather", "weather"]
    with pytest.raises(DataError, match=r"tool call messages\[1\] is not JSON"):
        load(
            tmp_path,
            [{"messages": [user(), turn("tool_call", "rain?"), bot(GOOD)], "rejected_response": BAD}],
        )


def test_numbers_of_a_table_name_a_side(tmp_path):
    rows = [{"prompt": "p", "response_1": "x", "response_2": "y", "preference": "2.0"}]
    (record,) = load(tmp_path, rows).records
    assert record.completions == ("y", "x")


def test_columns_of_unknown_names_are_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "one": "a", "two": "b"}))
    with pytest.raises(DataError, match="prompts only, which give no pairs; got the other columns one, two"):
        prepare(path, word_tokenizer(CHATML), "pairs", DataOptions())
