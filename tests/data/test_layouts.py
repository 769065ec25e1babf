"""Every layout that people have is read right, or refused with the reason; no column is passed over."""

import json

import pytest

from preftune.data.options import DataOptions
from preftune.data.records import LoadedRecords, load_records
from preftune.errors import DataError
from tests.data.layouts import DOCS, END, LAYOUTS, START, Layout, with_table


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
    assert {name.partition(".")[0] for name in loaded.columns} >= set() and loaded.columns


def test_the_table_of_the_page_is_up_to_date():
    text = DOCS.read_text(encoding="utf-8")
    assert START in text and END in text
    assert with_table(text) == text, "run python -m tests.data.layouts"
