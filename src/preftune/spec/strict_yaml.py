"""YAML in which a repeated key and a number that YAML reads in another way than its writer are errors."""

import re
from typing import Any

import yaml

from preftune.errors import ConfigError, shown

_MOST_NODES = 100_000  # values of a document with its aliases written out
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9a-fA-FxXoObB_]+|\d[\d_]*(:[0-5]?\d)+(\.\d*)?|[\d_]*_[\d_.]*)")


def odd_number(text: str) -> bool:
    """Whether YAML 1.1 reads a number that its writer did not mean: 010 as 8, 0x10 as 16, 1:30 as 90, 4_0 as 40."""
    return _ODD_NUMBER.fullmatch(text) is not None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without surprises: no key twice, of which the last would win; no odd numbers; no document that
    its aliases make endless.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if _num_nodes(node, {}) > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES:,} values with its aliases written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if isinstance(key, str) and key in keys[:place]:
                line = node.value[place][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: the key {shown(key)} appears twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and odd_number(node.value):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"line {line}: {node.value} is no plain decimal number; quote it if it is text"
            )
        return super().construct_scalar(node)


def _num_nodes(node: Any, known: dict[int, int]) -> int:
    """Values in a document with aliases written out."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # an alias of a node that contains it has no end
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; every mistake is one sentence that names `where`."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{where} is not valid YAML", got="nesting without an end") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # ValueError: a date without such a month
        got = " ".join(str(error).split())
        raise ConfigError(f"{where} is not valid YAML", got=got[:160]) from error
