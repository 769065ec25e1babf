"""How things are written that have a name and settings: `brief`, `regex(pattern='^\\d+$')`,
`0.7*brief + 0.3*sentiment`, `dpo(beta=0.5)`, `module:Name`, `path/to/file.py:Name`.

    sum     := term (("+" | "-") term)*
    term    := [number "*"] named
    named   := NAME | NAME "(" [key "=" value ("," key "=" value)*] ")"
    value   := text without comma, quote or bracket | 'any text' | "any text" | "[" [value ("," value)*] "]"

Rewards, objectives, mixtures and the methods of a comparison are read here, and YAML becomes dataclasses here. The
same text works on the command line and in YAML. Nothing is escaped within quotes, so patterns stay as they are.
`null` and `none`, `true` and `false` are values where the setting allows them; in quotes they are text.
"""

from preftune.spec.terms import Bare, SpecTerm, parse_list, parse_sum, parse_term, suggestion
from preftune.spec.user_code import load_attribute
from preftune.spec.values import Kinds, build, read_values

__all__ = [
    "Bare",
    "Kinds",
    "SpecTerm",
    "build",
    "load_attribute",
    "parse_list",
    "parse_sum",
    "parse_term",
    "read_values",
    "suggestion",
]
