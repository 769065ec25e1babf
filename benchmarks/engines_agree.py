"""Does the quick engine of tokens (fastokens) give what each tokenizer's own engine gives?

    python benchmarks/engines_agree.py [FILE.jsonl[.gz] ...] [--tokenizers PATH/tokenizer.json ...] [--texts
    40000] [--json]

Compared are, for each tokenizer: every string in the files; made-up texts of pieces of all kinds, its added
tokens among them; and every character of the Basic Multilingual Plane between blanks and between digits. Told
are texts that differ, how many of them the package would have trusted it with (`preftune.data.fast_tokens`),
and how much faster it was.
"""

import argparse
import gzip
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import fastokens
import numpy as np
from tokenizers import Tokenizer

from preftune.data.fast_tokens import PROBE_TEXTS, agreeing, trusted
from preftune.model.load import resolve_model

MORE = (
    "\r",
    "\x0b",
    "\x0c",
    "\x00",
    "\x85",
    "\u200b",
    "\u2028",
    "①",
    "٣",
    "ı",
    "ǅ",
    "ﬁ",
    "👩\u200d👩\u200d👧",
    "العربية",
    "हिन्दी",
    "ไทย",
    "ª",
    "ʰ",
    "\u02bc",
    "\u0345",
    "\u20dd",
    "\ufeff",
    "\ufffd",
    "\ue000",
    "Ⅷ",
    "㊀",
    "〇",
    "<|",
    "``",
    "```",
    "__",
    "--",
    "=",
    "@",
)
KINDS_OF_TEXTS = ("files", "made_up", "characters")
_BATCH = 500


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def file_texts(paths: list[Path]) -> list[str]:
    texts = []
    for path in paths:
        raw = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        rows = (
            [json.loads(line) for line in raw.splitlines() if line.strip()]
            if ".jsonl" in path.name
            else json.loads(raw)
        )
        texts += strings(rows)
    return texts


def made_up(engine: Tokenizer, count: int) -> list[str]:
    draw, pieces = random.Random(0), [*PROBE_TEXTS, *MORE]
    added = [token.content for token in engine.get_added_tokens_decoder().values()][:40] or ["a"]
    return [
        "".join(draw.choice(added if draw.random() < 0.07 else pieces) for _ in range(draw.randint(1, 14)))
        for _ in range(count)
    ]


def characters() -> list[str]:
    codes = [*range(1, 0xD800), *range(0xE000, 0x10000)]
    return [f"{side}{chr(code)}{side}" for code in codes for side in (" ", "1")]


def quick_ids(engine: fastokens.Tokenizer, texts: list[str]) -> list[list[int] | None]:
    """None for a text with a byte that has no token."""
    found: list[list[int] | None] = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        try:
            flat, ends = engine.encode_batch_flat(batch)
        except ValueError:
            found += quick_ids_singly(engine, batch)
            continue
        ids, places = np.frombuffer(flat, "<u4").tolist(), np.frombuffer(ends, "<u8").tolist()
        found += [ids[i:j] for i, j in pairwise(places)]
    return found


def quick_ids_singly(engine: fastokens.Tokenizer, texts: list[str]) -> list[list[int] | None]:
    found: list[list[int] | None] = []
    for text in texts:
        try:
            found.append(engine.encode(text).ids)
        except ValueError:
            found.append(None)
    return found


def compared(engine: Tokenizer, quick: fastokens.Tokenizer, texts: list[str]) -> dict[str, object]:
    start = time.perf_counter()
    expected = [encoding.ids for encoding in engine.encode_batch_fast(texts, add_special_tokens=False)]
    own, start = time.perf_counter() - start, time.perf_counter()
    found = quick_ids(quick, texts)
    ours = time.perf_counter() - start
    different = [text for text, a, b in zip(texts, expected, found, strict=True) if b is not None and a != b]
    return {
        "texts": len(texts),
        "different": len(different),
        "of_these_trusted": sum(map(trusted, different)),
        "without_a_token": sum(ids is None for ids in found),
        "times_as_fast": own / ours,
        "shortest": sorted(different, key=len)[:3],
    }


def measure(path: Path, texts: list[str], count: int) -> dict[str, object]:
    engine = Tokenizer.from_file(str(path))
    engine.no_truncation()
    engine.no_padding()
    start = time.perf_counter()
    quick = agreeing(engine)
    result: dict[str, object] = {
        "tokenizer": str(path),
        "load_s": time.perf_counter() - start,
        "used": quick is not None,
    }
    if quick is not None:
        kinds = {"files": texts, "made_up": made_up(engine, count), "characters": characters()}
        result |= {kind: compared(engine, quick, of_kind) for kind, of_kind in kinds.items() if of_kind}
    return result


def told(result: dict) -> list[str]:
    lines = [
        f"{result['tokenizer']}: " + (f"loaded in {result['load_s']:.2f} s" if result["used"] else "not used")
    ]
    for kind in KINDS_OF_TEXTS:
        if found := result.get(kind):
            lines.append(
                f"    {kind}: {found['different']} of {found['texts']} differ, {found['of_these_trusted']} of them "
                f"trusted; {found['times_as_fast']:.1f} times as fast; {found['shortest'] or ''}".rstrip("; ")
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizers", nargs="*", type=Path)
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    for path in (*settings.files, *(settings.tokenizers or ())):
        path.is_file() or parser.error(f"there is no file {path}")
    texts = file_texts(settings.files)
    paths = settings.tokenizers or [Path(resolve_model("smollm2-135m-instruct")) / "tokenizer.json"]
    results = []
    for path in paths:
        results.append(measure(path, texts, settings.texts))
        print(json.dumps(results[-1]) if settings.json else "\n".join(told(results[-1])), flush=True)
    sys.exit(
        any(
            result[kind]["of_these_trusted"]
            for result in results
            for kind in KINDS_OF_TEXTS
            if kind in result
        )
    )


if __name__ == "__main__":
    main()
