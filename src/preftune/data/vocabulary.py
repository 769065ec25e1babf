"""How many token ids the model of a tokenizer knows."""

from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_ROWS: WeakKeyDictionary[PreTrainedTokenizerBase, int] = WeakKeyDictionary()


def note_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Note the number of rows of the embedding of the tokenizer's model."""
    _ROWS[tokenizer] = rows


def missing_rows(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The rows of the model's embedding where the tokenizer has more tokens; else, or if unknown, None."""
    rows = _ROWS.get(tokenizer)
    return rows if rows is not None and len(tokenizer) > rows else None
