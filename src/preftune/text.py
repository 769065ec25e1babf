"""Numbers and settings as text: digits that mean something, a real minus sign."""

import math
import re
from collections.abc import Mapping, Sequence

from preftune.stats import Interval


def value_text(value: float) -> str:
    """Three significant digits; whole from a thousand on."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.3g}".rstrip(".") if value else "0"
    return text.replace("-", "−")


def signed_text(value: float) -> str:
    """The same with a plus sign above zero."""
    return f"+{value_text(value)}" if value > 0 and math.isfinite(value) else value_text(value)


def percent(value: float) -> str:
    return f"{100 * value:.0f}%" if math.isfinite(value) else "not finite"


def bytes_text(count: int | float) -> str:
    """`512 bytes`, `1.4 MB`, `270 GB`: three significant digits, in powers of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError


def line_steps(text: str) -> list[str]:
    """The steps of an answer, which together are the text: its lines, each with the line breaks behind it."""
    return re.findall(r"\n*[^\n]+\n*", text)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def mean_text(interval: Interval, *, like: Interval | None = None, signed: bool = False) -> str:
    """The mean, with as many digits as its interval supports, or that of `like` where two means are side by
    side.
    """
    return _fixed(interval.mean, _decimals(like or interval), signed)


def range_text(interval: Interval, *, signed: bool = False) -> str:
    """`0.20 to 0.38`."""
    if interval.num == 1:
        return "one prompt, no interval"
    decimals = _decimals(interval)
    return f"{_fixed(interval.low, decimals, signed)} to {_fixed(interval.high, decimals, signed)}"


def interval_text(interval: Interval, *, signed: bool = False) -> str:
    """`0.29 (0.20 to 0.38)`."""
    return f"{mean_text(interval, signed=signed)} ({range_text(interval, signed=signed)})"


def describe(value: object) -> str:
    """A setting in a few words: of a mapping its name or path, of a list its entries."""
    if isinstance(value, Mapping):
        for key in ("name", "path", "file"):
            if value.get(key) is not None:
                return describe(value[key])
        return ", ".join(f"{key} {describe(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(describe(entry) for entry in value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _decimals(interval: Interval) -> int:
    """Two significant digits of half the interval's width; of the mean where there is no width."""
    width = (interval.high - interval.low) / 2
    scale = width if 0 < width < math.inf else abs(interval.mean)
    return 2 if scale == 0 else min(6, max(0, 1 - math.floor(math.log10(scale))))


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    if abs(value) >= 1e9:
        return value_text(value)
    text = f"{value:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:  # neither +0.00 nor -0.00
        text = text.lstrip("+-")
    return text.replace("-", "−")
