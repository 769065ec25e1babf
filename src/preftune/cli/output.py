"""What every command prints: JSON and tables."""

import json


def print_json(content: object) -> None:
    print(json.dumps(content, indent=2))  # ASCII: what would command a terminal stays an escape
