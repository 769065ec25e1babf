"""What the rounds of `iterate` share: evolved prompts, data of earlier rounds, and measures on held-out prompts."""
