"""Run folders to one self-contained HTML page. Sees only files: neither torch nor transformers is imported."""
