"""Tokens drawn per second by our sampler against plain `generate` with repeated prompts; alternating, in one
process.

    python benchmarks/sampling.py [--model NAME] [--rounds 3] [--prompts 4] [--completions 8] [--prompt_tokens
    256]
                                  [--new_tokens 128] [--json]

Prompts are random tokens. Both sides draw at temperature 1 and stop a completion at the end-of-turn token;
tokens up to it are counted, so that neither is paid for padding. Prints the tokens per second of each and the
ratio of the totals, with the smallest and the largest ratio of a round, and the same ratio of processor time,
which other programs disturb less. With `--forced` the end-of-turn token neither stops nor counts, which
leaves the cost of a step alone.
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch
from transformers import GenerationConfig

from preftune.model.load import LoadOptions, quiet_transformers
from preftune.sampling.sample import SampleOptions, load_sampler, sample


def generate(model, end: int | None, prompts: list[np.ndarray], options: SampleOptions, seed: int) -> int:
    """Tokens drawn by transformers' own loop."""
    ids = torch.from_numpy(np.stack(prompts)).long()
    torch.manual_seed(seed)
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=True,
        top_k=0,
        num_return_sequences=options.num_completions,
        eos_token_id=end,
        pad_token_id=0,
    )
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[
            :, ids.shape[1] :
        ]
    before = out.shape[1] if end is None else ((out == end).int().cumsum(1) == 0).sum(1)
    return int((before + 1).clamp(max=out.shape[1]).sum()) if end is not None else out.numel()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    for name, default in (
        ("rounds", 3),
        ("prompts", 4),
        ("completions", 8),
        ("prompt_tokens", 256),
        ("new_tokens", 128),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forced", action="store_true")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    quiet_transformers()
    model, renderer = load_sampler(settings.model, LoadOptions(), "fp32", "cpu")
    model.generation_config = GenerationConfig()
    if settings.forced:
        renderer = replace(renderer, end_of_turn=-1)
    random = np.random.default_rng(0)
    options = SampleOptions(num_completions=settings.completions, max_new_tokens=settings.new_tokens)
    tokens, seconds, processor = ({"ours": [], "generate": []} for _ in range(3))
    for number in range(settings.rounds + 1):  # the first round warms up, on few tokens
        chosen = options if number else replace(options, max_new_tokens=4)
        table = random.integers(5, model.config.vocab_size, (settings.prompts, settings.prompt_tokens))
        prompts = list(table.astype(np.int32))
        for name in sorted(tokens, reverse=number % 2 == 0):
            started, began = time.perf_counter(), time.process_time()
            if name == "ours":
                drawn = sum(
                    len(one.token_ids)
                    for ones in sample(model, renderer, prompts, chosen, number)
                    for one in ones
                )
            else:
                drawn = generate(
                    model, None if settings.forced else renderer.end_of_turn, prompts, chosen, number
                )
            if number:
                tokens[name].append(drawn)
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - began)
    speed = {name: sum(tokens[name]) / sum(seconds[name]) for name in tokens}
    work = {name: sum(tokens[name]) / sum(processor[name]) for name in tokens}
    rounds = np.array(tokens["ours"]) / seconds["ours"] * seconds["generate"] / tokens["generate"]
    result = {
        "ratio": speed["ours"] / speed["generate"],
        "ratio_range": [float(rounds.min()), float(rounds.max())],
        "ratio_processor_time": work["ours"] / work["generate"],
        "ours_tokens_per_second": speed["ours"],
        "generate_tokens_per_second": speed["generate"],
        "tokens": {name: sum(drawn) for name, drawn in tokens.items()},
        "threads": torch.get_num_threads(),
        **vars(settings),
    }
    if settings.json:
        print(json.dumps(result))
    else:
        print(
            f"ours / generate = {result['ratio']:.2f} (rounds: {rounds.min():.2f} to {rounds.max():.2f}); "
            f"{result['ratio_processor_time']:.2f} in processor time; "
            f"{speed['ours']:.0f} and {speed['generate']:.0f} tokens/s"
        )


if __name__ == "__main__":
    main()
