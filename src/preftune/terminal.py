"""Text from files or models, made safe to print on a terminal."""

import re

# String sequences (OSC, DCS, SOS, PM, APC) end with BEL or ST; CSI ends with a final byte; the rest are two
# characters.
_SEQUENCES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
# C0 and C1 controls except tab and newline, marks that reorder text, and lone surrogates (which cannot be
# written).
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean_terminal(text: str) -> str:
    """The text without anything that commands a terminal: escape sequences, controls, text-direction
    overrides.
    """
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))
