"""Methods on a transformer so small that a run takes seconds: is a short answer learned sooner from own
samples?

    python runs/tiny_transformer.py OUTPUT tune         one seed of its own, the same grid of learning rates
    for every method python runs/tiny_transformer.py OUTPUT confirm      fresh seeds: the runs and the
    criteria of tiny_transformer_criteria.yaml

A base model learns strings of a known law of lengths (the same for all methods of a seed); pairs of its
samples, labeled by length, are what offline methods see. Prints tables and writes OUTPUT/PHASE.json.
Resumable: finished runs are read.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from preftune.data.options import DataOptions
from preftune.data.render import Renderer
from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.load import LoadOptions, quiet_transformers
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.model.reference import ReferenceOptions
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.ppo import PPO
from preftune.objectives.rwr import RWR
from preftune.objectives.sft import SFT
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.sampling.sampled import Sampled
from preftune.stats import mean_interval
from preftune.train.loop import train
from preftune.train.options import OptimOptions, TrainConfig
from preftune.types import Group, Record

CRITERIA = Path(__file__).with_name("tiny_transformer_criteria.yaml")
LETTERS = "abcdefghijklmnop"
LONGEST, MEAN, SPREAD = (
    32,
    23.0,
    4.0,
)  # tokens, end included; that of the laboratory's length problem (64, 46, 8), halved
TUNING_SEED = 100
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LAYOUT = LayoutOptions(micro_batch_tokens=4096)
METHODS: dict[str, tuple[Objective, bool]] = {  # name -> (objective, whether it learns from its own samples)
    "on-dpo": (DPO(), True),
    "off-dpo": (DPO(), False),
    "ppo": (PPO(), True),
    "rwr": (
        RWR(max_weight=1e9),
        True,
    ),  # the bound, made for rewards of another scale, would stop learning below 11 tokens
    "rwr-flat": (RWR(max_weight=1e9, temperature=4.0), True),
    "pref-ft": (SFT(), False),
    "on-bnf": (BNF(), True),
    "off-bnf": (BNF(), False),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done; a step is `pairs` pairs offline, as many prompts with two completions each on-policy."""

    base_steps: int = 500
    base_rows: int = 16384
    pairs: int = 2048
    steps: int = 40
    every: int = 5  # steps between measurements
    batch: int = 16
    measured: int = 256  # held-out prompts, two completions each


def shortness(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The reward: minus the number of tokens, in standard deviations of the law and from its mean."""
    return [(MEAN - count) / SPREAD for count in columns["num_tokens"]]


# --- base model and data ---


def length_law() -> np.ndarray:
    """Probabilities of 0, 1, ... LONGEST tokens: a normal law cut off at both ends; every string has a letter
    and an end.
    """
    tokens = np.arange(LONGEST + 1)
    law = np.where(tokens >= 2, np.exp(-(((tokens - MEAN) / SPREAD) ** 2) / 2), 0.0)
    return law / law.sum()


def law_gap(lengths: Sequence[int]) -> float:
    """KL(sampled lengths || law) in nats; a length that the law lacks counts as a millionth."""
    found = np.bincount(lengths, minlength=LONGEST + 1) / len(lengths)
    seen = found > 0
    return float((found[seen] * np.log(found[seen] / np.maximum(length_law()[seen], 1e-6))).sum())


def strings(random: np.random.Generator, count: int) -> list[dict[str, str]]:
    """Prompts of four letters that differ, and walks through the alphabet that go on from their last letter."""
    codes = random.choice(len(LETTERS) ** 4, count, replace=False)
    rows = []
    for code, length in zip(codes, random.choice(LONGEST + 1, count, p=length_law()), strict=True):
        prompt = [int(code) // len(LETTERS) ** k % len(LETTERS) for k in range(4)]
        walk = (prompt[-1] + np.cumsum(random.choice([1, 2, 3], length - 1, p=[0.6, 0.3, 0.1]))) % len(
            LETTERS
        )
        rows.append(
            {"prompt": "".join(LETTERS[k] for k in prompt), "completion": "".join(LETTERS[k] for k in walk)}
        )
    return rows


def write_rows(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_untrained(folder: Path, seed: int) -> None:
    """A two-layer Llama of width 32 and a tokenizer of letters."""
    words = Tokenizer(
        models.WordLevel({text: k for k, text in enumerate(["<s>", "</s>", *LETTERS])}, unk_token="<s>")
    )
    words.pre_tokenizer = pre_tokenizers.Split(Regex("[a-p]"), "isolated")
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_base(folder: Path, seed: int, size: Size) -> Path:
    """The base model of a seed, its prompts, its pairs (half of them for nothing but measuring), and
    base.json about them.
    """
    if (folder / "base.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = strings(np.random.default_rng([seed, 0]), size.base_rows + 2 * size.pairs)
    data = write_rows(folder / "strings.jsonl", rows[: size.base_rows])
    save_untrained(folder / "untrained", seed)
    run = train(
        TrainConfig(
            data=data,
            rows=DataOptions(format="completions"),
            output=str(folder / "run"),
            model=str(folder / "untrained"),
            objective=SFT(),
            batch_size=64,
            epochs=1e6,
            max_steps=size.base_steps,
            eval_fraction=0.0,
            seed=seed,
            layout=LAYOUT,
            optim=OptimOptions(learning_rate=1e-2, schedule="cosine", warmup_ratio=0.05),
        ),
        quiet=True,
    )
    shutil.copytree(run.folder / "final", folder / "model")
    model, renderer = load_sampler(str(folder / "model"), LoadOptions(), "fp32", "cpu")
    prompts = [row["prompt"] for row in rows[size.base_rows :]]
    drawn = draw(model, renderer, prompts, seed)
    pairs = []
    for prompt, two in zip(prompts, drawn, strict=True):
        short, long = sorted(two, key=lambda one: len(one.token_ids))
        plain = all(
            one.ended and 0 < len(one.text) == len(one.token_ids) - 1 for one in two
        )  # no <s> in it, which text loses
        if plain and len(short.text) < len(long.text):
            pairs.append({"prompt": prompt, "chosen": short.text, "rejected": long.text})
    write_rows(folder / "pairs.jsonl", pairs[: len(pairs) // 2])
    write_rows(folder / "held_pairs.jsonl", pairs[len(pairs) // 2 :])
    write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts[: size.pairs]])
    write_rows(folder / "held_prompts.jsonl", [{"prompt": prompt} for prompt in prompts[size.pairs :]])
    lengths = [len(one.token_ids) for two in drawn for one in two]
    about = {
        "gap": law_gap(lengths),
        "length": float(np.mean(lengths)),
        "completions": len(lengths),
        "pairs": len(pairs) // 2,
        "ended": float(np.mean([one.ended for two in drawn for one in two])),
    }
    (folder / "base.json").write_text(json.dumps(about))
    return folder


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(
    model: PreTrainedModel, renderer: Renderer, prompts: Sequence[str], seed: int
) -> list[list[Sampled]]:
    """Two completions of each prompt."""
    tokens = [renderer.render(Record(prompt=prompt, completions=())).prompt for prompt in prompts]
    options = SampleOptions(num_completions=2, max_new_tokens=LONGEST, sample_batch=512)
    return sample(model, renderer, tokens, options, seed)


# --- one run, and what it came to ---


def run_method(base: Path, folder: Path, method: str, rate: float, seed: int, size: Size) -> dict:
    """What was measured of a run, which is done if it is not there."""
    if (folder / "measured.json").exists():
        return json.loads((folder / "measured.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    objective, on_policy = METHODS[method]
    own = (
        dict(
            source="on-policy",
            reward=f"{__file__}:shortness",
            data=str(base / "prompts.jsonl"),
            sampling=SampleOptions(num_completions=2, max_new_tokens=LONGEST),
        )
        if on_policy
        else dict(data=str(base / "pairs.jsonl"))
    )
    anchor = ReferenceOptions(mode="live" if "ref_logp" in objective.needs else "auto")
    config = TrainConfig(
        output=str(folder),
        model=str(base / "model"),
        objective=objective,
        batch_size=size.batch,
        max_steps=size.steps,
        epochs=1e6,
        eval_fraction=0.0,
        save_every=size.every,
        keep_checkpoints=size.steps,
        seed=seed,
        layout=LAYOUT,
        reference=anchor,
        optim=OptimOptions(learning_rate=rate, schedule="constant", warmup_ratio=0.0),
        **own,
    )
    started = time.process_time()
    train(
        config, quiet=True
    )  # at the goal all samples have one length, and a contrast ends its run before the last step
    last = read_rows(folder / "metrics.jsonl")[-1]
    measured = {
        "steps": last["step"],
        "samples": last["samples_drawn"],
        "seconds": time.process_time() - started,
    }
    measured |= measure(base, folder, seed, size)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "measured.json").write_text(json.dumps(measured))
    return measured


def measure(base: Path, run: Path, seed: int, size: Size) -> dict:
    """Mean length on held-out prompts by step, and of the last policy KL to the base and log-ratios of
    held-out pairs.
    """
    model, renderer = load_sampler(str(base / "model"), LoadOptions(), "fp32", "cpu")
    reference, _ = load_sampler(str(base / "model"), LoadOptions(), "fp32", "cpu")
    prompts = [row["prompt"] for row in read_rows(base / "held_prompts.jsonl")[: size.measured]]
    weights = {
        int(path.name.split("-")[1]): path / "policy.safetensors"
        for path in (run / "checkpoints").glob("step-*")
    }
    weights[read_rows(run / "metrics.jsonl")[-1]["step"]] = run / "final" / "model.safetensors"
    lengths, drawn = {}, []
    for step in range(
        size.every, size.steps + 1, size.every
    ):  # of a run that stopped, the weights where it did
        state = load_file(weights[max(k for k in weights if k <= step)])
        model.load_state_dict(
            {name: tensor for name, tensor in state.items() if not name.startswith("value_head")}
        )
        drawn = draw(
            model, renderer, prompts, seed + 10**6
        )  # the same noise for every method and step of a seed
        lengths[str(step)] = float(np.mean([len(one.token_ids) for two in drawn for one in two]))
    own = [
        Group(
            prompt=renderer.render(Record(prompt=prompt, completions=())).prompt,
            completions=tuple(one.token_ids for one in two),
        )
        for prompt, two in zip(prompts, drawn, strict=True)
    ]
    rows = read_rows(base / "held_pairs.jsonl")[: 2 * size.measured]
    pairs = [
        renderer.render(Record(prompt=row["prompt"], completions=(row["chosen"], row["rejected"])))
        for row in rows
    ]
    ratios = log_ratios(model, reference, pairs)
    return {
        "lengths": lengths,
        "kl": float(log_ratios(model, reference, own).mean()),
        "chosen": ratios[:, 0].tolist(),
        "rejected": ratios[:, 1].tolist(),
    }


def log_ratios(model: PreTrainedModel, reference: PreTrainedModel, groups: Sequence[Group]) -> np.ndarray:
    """log pi(y) - log ref(y) in nats, [groups, completions]."""
    totals = []
    for one in (model, reference):
        policy = Policy(model=one, precision="fp32", sharing=choose_sharing(one, True)[0], sharing_reason="")
        total = np.zeros((len(groups), len(groups[0].completions)))
        for indices in split_micro_batches(groups, LAYOUT, policy.sharing):
            found = score_groups(policy, [groups[i] for i in indices], LAYOUT)
            total[indices] = [[float(logp.sum()) for logp in logps] for logps in found]
        totals.append(total)
    return totals[0] - totals[1]


# --- tuning, and the confirming run ---


def mean_length(measured: dict) -> float:
    """Over the measured steps: low where a method is fast and stays where it got."""
    return statistics.mean(measured["lengths"].values())


def tune(output: Path, methods: Sequence[str], size: Size) -> dict:
    """For every method the mean length at each learning rate, on the tuning seed."""
    base, found = make_base(output / f"base-{TUNING_SEED}", TUNING_SEED, size), {}
    about = json.loads((base / "base.json").read_text())
    print(f"base: {about}")
    for method in methods:
        for rate in RATES:
            one = run_method(
                base, output / f"{method}-{rate:g}-{TUNING_SEED}", method, rate, TUNING_SEED, size
            )
            found.setdefault(method, {})[f"{rate:g}"] = {
                name: one[name] for name in ("lengths", "kl", "steps", "seconds")
            }
            shown = " ".join(f"{length:5.1f}" for length in one["lengths"].values())
            print(
                f"{method:8} {rate:7.0e} {mean_length(one):6.2f} | {shown} | KL {one['kl']:6.1f}", flush=True
            )
    return {"seed": TUNING_SEED, "base": about, "runs": found}


def confirm(output: Path, criteria: dict, size: Size) -> dict:
    """The frozen runs on fresh seeds, and the verdict on each frozen clause."""
    seeds, done, gaps = criteria["seeds"], {name: [] for name in criteria["runs"]}, []
    assert TUNING_SEED not in seeds, "the seed of tuning confirms nothing"
    for seed in seeds:
        base = make_base(output / f"base-{seed}", seed, size)
        gaps.append(json.loads((base / "base.json").read_text())["gap"])
        for name, run in criteria["runs"].items():
            folder = output / f"{run['method']}-{run['rate']:g}-{seed}"
            done[name].append(run_method(base, folder, run["method"], run["rate"], seed, size))
            print(
                f"{name:15} {seed} {[round(length, 1) for length in done[name][-1]['lengths'].values()]}",
                flush=True,
            )
    bound = criteria["base_gap"]
    verdicts = [
        verdict(
            "base", f"KL of the base's lengths to the law, each seed below {bound:g}", gaps, max(gaps) < bound
        )
    ]
    verdicts += [row for clause in criteria["lengths"] for row in length_verdicts(clause, done)]
    verdicts += [row for clause in criteria["margins"] for row in margin_verdicts(clause, done)]
    names = ("lengths", "kl", "steps", "samples", "seconds")
    runs = {method: {name: [one[name] for one in ones] for name in names} for method, ones in done.items()}
    show(runs, verdicts)
    return {"seeds": seeds, "gaps": gaps, "runs": runs, "verdicts": verdicts}


def length_verdicts(clause: dict, done: dict[str, list[dict]]) -> list[dict]:
    """By how much one run's completions are longer than another's, for each step of the clause."""
    rows = []
    for step in clause["at"]:
        longer, shorter = (
            [one["lengths"][str(step)] for one in done[clause[side]]] for side in ("longer", "shorter")
        )
        gained = np.subtract(longer, shorter)
        holds = bool(gained.mean() > clause["above"] and gained.min() > 0) if "above" in clause else None
        wanted = f"above {clause['above']:g}, each seed above 0" if "above" in clause else "reported only"
        rows.append(
            verdict(
                clause["id"],
                f"{clause['longer']} less {clause['shorter']}, step {step}: {wanted}",
                gained,
                holds,
            )
        )
    return rows


def margin_verdicts(clause: dict, done: dict[str, list[dict]]) -> list[dict]:
    """Implicit rewards of held-out pairs at the last step: the difference of two runs' margins, and each side
    of each run.
    """
    beta, names = clause["beta"], (clause["larger"], clause["smaller"])
    larger, smaller = ([beta * margins(one) for one in done[name]] for name in names)
    gained = [np.subtract(a, b) for a, b in zip(larger, smaller, strict=True)]
    means = [float(one.mean()) for one in gained]
    holds = min(mean_interval(one).low for one in [*gained, means]) > 0
    says = f"margin of {names[0]} less that of {names[1]}: lower bounds over pairs (each seed) and over seeds above 0"
    rows = [verdict(clause["id"], says, means, holds)]
    for name in names:
        for side in ("chosen", "rejected"):
            values = [beta * statistics.mean(one[side]) for one in done[name]]
            rows.append(
                verdict(clause["id"], f"implicit reward of {side}, {name}: reported only", values, None)
            )
    return rows


def margins(measured: dict) -> np.ndarray:
    """Log-ratio of chosen less that of rejected, in nats, one per held-out pair."""
    return np.subtract(measured["chosen"], measured["rejected"])


def verdict(name: str, says: str, values: Sequence[float] | np.ndarray, holds: bool | None) -> dict:
    """A row of the report; the interval is Student's t over seeds, 95%, which three seeds make wide."""
    interval = mean_interval(values)
    word = {True: "pass", False: "fail", None: "-"}[holds]
    return {
        "id": name,
        "says": says,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "seeds": [float(value) for value in values],
        "verdict": word,
    }


def show(table: dict, verdicts: Sequence[dict]) -> None:
    steps = list(next(iter(table.values()))["lengths"][0])
    print(f"{'mean length at step':20} " + " ".join(f"{step:>5}" for step in steps) + "     KL  samples")
    for method, one in table.items():
        means = [statistics.mean(lengths[step] for lengths in one["lengths"]) for step in steps]
        rest = f"{statistics.mean(one['kl']):6.1f} {statistics.mean(one['samples']):8.0f}"
        print(f"{method:20} " + " ".join(f"{mean:5.1f}" for mean in means) + f" {rest}")
    for row in verdicts:
        print(
            f"{row['id']:4} {row['verdict']:4} {row['mean']:8.3f} ({row['low']:.3f} to {row['high']:.3f})  {row['says']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("phase", choices=["tune", "confirm"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="to tune")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a second thread makes models of this size slower
    quiet_transformers()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    if options.phase == "tune":
        content = tune(options.output, options.methods, Size())
    else:
        content = confirm(options.output, yaml.safe_load(CRITERIA.read_text()), Size())
    content["seconds"] = time.process_time() - started  # of one core, without runs that were there
    print(f"{content['seconds']:.0f} s of processor time")
    (options.output / f"{options.phase}.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
