"""From the files users have to groups of token ids: read, formats, signals, render, prepare, inspect.

Kept empty so that `preftune.data.options` can be imported without torch.
"""
