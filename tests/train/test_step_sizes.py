"""No number of rows and no batch size stops a run in the middle: steps of any size, of one prompt, or of groups
that teach nothing.
"""

import math
import shutil

import numpy as np
import pytest
import torch

from preftune.errors import ConfigError, DataError
from preftune.model.layout import batch_signal
from preftune.objectives import OBJECTIVES
from preftune.objectives.base import smallest_step
from preftune.objectives.bco import BCO
from preftune.objectives.kto import KTO
from preftune.objectives.mixture import Mixture
from preftune.progress import Reporter
from preftune.train.batches import mismatched_groups, prompt_digests
from preftune.train.dry_run import dry_run
from preftune.train.loop import resume, train
from preftune.train.processes import ALONE
from preftune.train.runlog import RunFolder
from preftune.train.sources import OfflineSource, num_steps_of, step_slice
from preftune.train.step import MicroBatch, run_step
from preftune.types import Group, Labels, TokenScores
from tests.folders import metric_rows, same_bits, tiny_config, weights_of, write_rows

WORDS = 11
ROWS, BATCH_SIZES = range(1, 21), (1, 2, 3, 4, 8)


@pytest.mark.parametrize("least", [1, 2])
def test_a_pass_takes_every_row_once_and_a_small_remainder_joins_the_step_before(least):
    for rows in ROWS:
        for batch_size in BATCH_SIZES:
            count = num_steps_of(rows, batch_size, least)
            parts = [step_slice(place, rows, batch_size, least) for place in range(count)]
            assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
            sizes = [len(range(rows)[part]) for part in parts]
            assert all(size >= least for size in sizes) or rows < least or batch_size < least
            assert max(sizes) < batch_size + least
            source = OfflineSource(groups=groups(Labels, rows), batch_size=batch_size, seed=0, least=least)
            assert source.steps_per_epoch == count
            assert [len(source.take(step)) for step in range(1, count + 1)] == sizes


def groups(kind, count: int, one_prompt: bool = False) -> list[Group]:
    """Rows as a file of this signal gives them, some with one completion and some with equal rewards."""
    found = []
    for row in range(count):
        ids = [np.arange(1 + k, 4 + row % 3 + k, dtype=np.int32) % WORDS for k in range(3)]
        prompt = np.array([1, 0 if one_prompt else row], dtype=np.int32)
        number = {0: 1, 1: 2, 2: 3}[row % 3]
        settings = {
            "Labels": {"completions": ids[:1], "labels": (1 if row % 3 else -1,)},
            "Pairs": {"completions": ids[:2], "pairs": ((0, 1),), "sources": (0, 0)},
            "Hybrid": {"completions": ids, "pairs": ((0, 1),), "sources": (0, 0, 1)},
            "Rewards": {
                "completions": ids[:number],
                "rewards": tuple(0.5 if row % 4 == 1 else float(k) for k in range(number)),
            },
        }[kind.__name__]
        settings["completions"] = tuple(settings["completions"])
        found.append(Group(prompt=prompt, origin=f"row {row}", **settings))
    return found


def piece(part, kind) -> MicroBatch:
    lengths = torch.tensor([len(ids) for group in part for ids in group.completions])
    return MicroBatch(
        content=tuple(part),
        lengths=lengths,
        prompt=prompt_digests(part),
        signal=batch_signal(part, kind),
        origins=tuple(group.origin for group in part),
    )


class Table:
    """A policy that is a table: one logit and one value for each token."""

    def __init__(self):
        random = torch.Generator().manual_seed(3)
        self.logits = torch.nn.Parameter(torch.randn(WORDS, generator=random))
        self.values = torch.nn.Parameter(torch.zeros(WORDS))
        self.frozen = torch.randn(WORDS, generator=random).log_softmax(0) - 1.0

    def score(self, micro_batch: MicroBatch) -> TokenScores:
        ids = torch.from_numpy(
            np.concatenate([one for group in micro_batch.content for one in group.completions])
        )
        logp, frozen = self.logits.log_softmax(0)[ids.long()], self.frozen[ids.long()]
        share = frozen.exp()
        return TokenScores(
            logp=logp,
            lengths=micro_batch.lengths,
            ref_logp=frozen,
            behaviour_logp=frozen,
            entropy=-logp,
            target_logit=self.logits[ids.long()],
            log_normalizer=self.logits[ids.long()] - logp,
            log_collision=frozen,
            ref_entropy_share=share,
            kl_from_ref=share,
            kl_to_ref=share,
            contrast=frozen,
            value=self.values[ids.long()],
            value_after=self.values[ids.long()],
            behaviour_value=torch.zeros(len(ids)),
        )


def run(objective, steps) -> list:
    """The results of some steps, with the state that the estimators carry along."""
    table, state, results = Table(), None, []
    parameters = [table.logits, table.values]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for part in steps:
        mismatched = [piece([one], Labels) for one in mismatched_groups(part)]
        wanted = mismatched if smallest_step(objective) > 1 else []
        results.append(
            run_step(
                [piece(part, objective.signal)],
                objective,
                table.score,
                parameters,
                optimizer,
                1.0,
                state=state,
                mismatched=wanted,
            )
        )
        state = results[-1].state or None
    return results


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_of_every_size_are_taken(name):
    """All sizes that a batch size of at most 8 leaves, remainders included, one after another."""
    objective = OBJECTIVES[name]()
    rows = groups(objective.signal, 20)
    for result in run(objective, [rows[:size] for size in (8, 1, 2, 3, 4, 5, 6, 7, 9, 1, 1)]):
        assert math.isfinite(result.loss) and math.isfinite(result.grad_norm)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_of_one_prompt_is_taken(name):
    objective = OBJECTIVES[name]()
    rows = groups(objective.signal, 4, one_prompt=True)
    for result in run(objective, [rows, rows[:1], rows[1:3]]):
        assert math.isfinite(result.loss)


def test_without_another_prompt_the_baseline_of_kto_is_zero():
    rows = groups(Labels, 4, one_prompt=True)
    (result,) = run(KTO(), [rows])
    assert result.metrics["kto/z0"] == 0.0
    (result,) = run(KTO(), [groups(Labels, 4)])
    assert result.metrics["kto/z0"] > 0.0


@pytest.mark.parametrize("name", ["dapo", "copg", "agro", "gvpo", "dft"])
def test_a_step_without_weight_changes_nothing_and_says_so(name):
    """Groups of one completion, or of equal rewards, on which the objective puts no weight."""
    objective = OBJECTIVES[name]()
    alone = [
        Group(
            prompt=np.array([5], dtype=np.int32),
            completions=(np.array([1, 2], dtype=np.int32),),
            rewards=(1.0,),
        )
    ]
    table = Table()
    before = table.logits.detach().clone()
    result = run_step(
        [piece(alone, objective.signal)],
        objective,
        table.score,
        [table.logits],
        torch.optim.SGD([table.logits], lr=1.0),
        1.0,
        state={},
    )
    assert result.metrics == {"step/empty": 1.0}
    assert torch.equal(table.logits, before)


# --- whole runs ---

SINGLES = [
    {"prompt": f"Question {k}?", "completion": f"Answer {k}, which is that.", "label": k % 3 > 0}
    for k in range(20)
]


@pytest.fixture
def singles(tiny_folder, tmp_path):
    def made(rows, batch_size, objective=None, **settings):
        chosen = {"eval_fraction": 0.0, "epochs": 1.0, "batch_size": batch_size} | settings
        data = write_rows(tmp_path / f"{rows}.jsonl", SINGLES[:rows])
        output = tmp_path / f"run-{rows}-{batch_size}"
        return tiny_config(tiny_folder, data, output, objective=objective or KTO(), **chosen)

    return made


@pytest.mark.parametrize(
    "objective", [KTO(), BCO(), Mixture(terms="kto + sft")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize(
    ("rows", "batch_size", "steps"), [(9, 4, 2), (17, 8, 2), (2, 8, 1), (5, 2, 2), (3, 2, 1)]
)
def test_labeled_rows_of_any_number(singles, objective, rows, batch_size, steps):
    run = train(singles(rows, batch_size, objective), quiet=True)
    assert run.state == "finished"
    merged = not isinstance(objective, BCO)
    assert run.step == (steps if merged else math.ceil(rows / batch_size))


def test_one_held_out_prompt_a_dry_run_and_a_resumed_run(singles, tmp_path):
    config = singles(9, 4, eval_fraction=0.1, save_every=1, epochs=2.0, keep_checkpoints=9)
    assert dry_run(config, Reporter(quiet=True), ALONE).num_steps == 4
    whole = train(config, quiet=True)
    held = [row for row in metric_rows(whole.folder) if row["phase"] == "eval"]
    assert len(held) > 1 and all(row["eval_kto/z0"] == 0.0 for row in held)
    expected = weights_of(whole.final)
    shutil.rmtree(whole.final)
    for step in (3, 4):
        shutil.rmtree(whole.folder / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    RunFolder(path=whole.folder).set_state("interrupted", 2)
    assert same_bits(weights_of(resume(config, quiet=True).final), expected)


def test_what_cannot_be_compared_is_refused_before_the_first_step(singles, tiny_folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"kto compares completions .*; got batch_size 1; expected at least 2"
    ):
        singles(9, 1)
    with pytest.raises(DataError, match=r"kto compares .* got one prompt in the training data"):
        train(singles(1, 4), quiet=True)
