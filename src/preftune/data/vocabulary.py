"""How many token ids the model of a tokenizer knows."""

from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_ROWS: WeakKeyDictionary[PreTrainedTokenizerBase, int] = WeakKeyDictionary()


def note_rows(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Note the number of rows of the embedding of the tokenizer's model."""
    _ROWS[tokenizer] = rows


def missing_rows(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The rows of the model's embedding where the tokenizer has ids that are not below; else, or if unknown, None."""
    rows = _ROWS.get(tokenizer)
    return rows if rows is not None and _end_of_ids(tokenizer) > rows else None


def _end_of_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id + 1: the number of tokens, unless ids are left out."""
    count = len(tokenizer)
    if not tokenizer.is_fast or (count and tokenizer.convert_ids_to_tokens(count - 1) is not None):
        return count
    return max(tokenizer.get_vocab().values(), default=-1) + 1
