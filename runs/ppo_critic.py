"""What PPO's critic needs: variants of ppo on a tiny random model, reward length.min, 256 samples each.

    PYTHONPATH=src:. python runs/ppo_critic.py OUTPUT [--seeds 0 1 2]

The model has two layers and random weights, so a run takes seconds on one thread. Prints a line for each run: the
held-out reward before training, after 128 and after 256 samples, and the KL divergence to the start.
Resumable: finished runs are read.
"""

import argparse
from pathlib import Path

import torch
from tests.folders import metric_rows, save_tiny_model, write_rows

from preftune.objectives.bnf import BNF
from preftune.objectives.ppo import PPO
from preftune.objectives.rloo import RLOO
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.options import OptimOptions, TrainConfig

VARIANTS = {  # name -> (objective, epochs over a collection, learning rate of the critic's head)
    "rloo": (RLOO(), 1, None),
    "bnf": (BNF(), 1, None),
    "ppo": (PPO(), 1, 0.1),
    "ppo, 4 epochs": (PPO(), 4, 0.1),
    "ppo, lam 1, 4 epochs": (PPO(lam=1.0), 4, 0.1),
    "ppo, slow head, 4 epochs": (PPO(), 4, 1e-2),
    "ppo, returns as they are, 4 epochs": (PPO(normalize_returns=False), 4, 0.1),
    "ppo, returns as they are, slow head": (PPO(normalize_returns=False), 1, 1e-2),
}


def run(folder: Path, name: str, seed: int) -> list[dict]:
    """The rows of a finished run."""
    objective, epochs, head = VARIANTS[name]
    output = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    if not (output / "final").exists():
        optim = {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0}
        train(
            TrainConfig(
                source="on-policy",
                data=str(folder / "prompts.jsonl"),
                reward="length.min",
                model=str(folder / "model"),
                output=str(output),
                objective=objective,
                batch_size=4,
                max_steps=16 * epochs,
                epochs=1e6,
                eval_fraction=0.2,
                eval_every=8 * epochs,
                seed=seed,
                sampling=SampleOptions(num_completions=4, max_new_tokens=32),
                collect=CollectOptions(epochs=epochs, eval_completions=4),
                optim=OptimOptions(**optim, value_learning_rate=head),
            ),
            quiet=True,
        )
    return metric_rows(output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        save_tiny_model(folder / "model")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"Say {k}."} for k in range(20)])
    for seed in options.seeds:
        for name in VARIANTS:
            held = [row for row in run(folder, name, seed) if row["phase"] == "eval"]
            rewards = " ".join(f"{row['eval_reward']:7.2f}" for row in held)
            print(f"seed {seed}  {name:36} {rewards}   KL {held[-1]['eval_kl']:.2f}", flush=True)


if __name__ == "__main__":
    main()
