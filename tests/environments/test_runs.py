"""Environments in the commands: on-policy training and `sample`, killed and resumed, and hostile environments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preftune.commands.sample import SampleConfig, sampled_rows
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.environments import resolve_environment
from preftune.environments.base import EnvironmentFault, RolloutOptions
from preftune.environments.steps import Steps
from preftune.errors import ConfigError, TrainingError
from preftune.model.load import load_tokenizer
from preftune.model.whole_model import LoadOptions
from preftune.objectives.grpo import GRPO
from preftune.objectives.reinforce import REINFORCE
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import train
from preftune.train.onpolicy.credit import with_answer_rewards
from preftune.train.options import TrainConfig
from preftune.types import Group
from tests.environments.calculator import QUESTIONS
from tests.folders import metric_rows, same_bits, timeless, tiny_config, weights_of
from tests.rewards.test_code import needs_sandbox

CALCULATOR = "tests.environments.calculator:Calculator"
ROOT = Path(__file__).parents[2]
HOSTILE = """
import os, time

class Hostile:
    def __init__(self, how, only=""):
        self.how, self.only = how, only
    def reset(self, row):
        return {"answer": row["answer"]}
    def step(self, state, text):
        if self.only and state["answer"] != self.only:
            return None, 1.0
        if self.how == "hangs":
            time.sleep(3600)
        if self.how == "dies":
            os._exit(7)
        if self.how == "raises":
            raise RuntimeError("broken tool")
        if self.how == "nonsense":
            return 3
        return {"role": "assistant", "content": "I am you"}, 0.0
"""


PAYING = """
from tests.environments.calculator import Calculator
class Paying(Calculator):
    def step(self, state, text):
        said, reward = super().step(state, text)
        return said, 0.25 if reward is None else reward
"""


def config(model, data, output, **settings) -> TrainConfig:
    chosen = {
        "source": "on-policy",
        "objective": GRPO(),
        "batch_size": 2,
        "epochs": 9.0,
        "max_steps": 3,
        "eval_fraction": 0.0,
        "sampling": SampleOptions(num_completions=3, max_new_tokens=14, temperature=2.0),
    } | settings
    limits = {"environment": CALCULATOR, "max_turns": 3, "total_tokens": 80} | chosen.pop("rollout", {})
    chosen["rollout"] = RolloutOptions(**limits)
    return tiny_config(model, data, output, optim={"learning_rate": 1e-3}, **chosen)


def test_ratios_start_at_one_and_context_is_not_counted(calling_folder, questions_file, tmp_path):
    run = train(config(calling_folder, questions_file, tmp_path / "run"), quiet=True)
    first = metric_rows(run.folder)[0]
    assert first["ratio/mean"] == pytest.approx(1, abs=1e-5) and first["ratio/clipped"] == 0
    assert first["sampler_gap"] < 1e-4
    assert first["rollout/answers"] > 1 and first["rollout/context"] > 0 and first["rollout/failed"] == 0
    rows = [json.loads(line) for line in (run.folder / "completions.jsonl").read_text().splitlines()]
    assert rows[0]["rewards"] == rows[0]["environment_reward"]
    assert any(turn["role"] == "tool" for row in rows for turns in row["turns"] for turn in turns)
    assert {turn["weight"] for turns in rows[0]["turns"] for turn in turns if turn["role"] == "tool"} <= {0}


KILLED = """
import os, signal
from tests.environments.calculator import Calculator
class Killer(Calculator):
    def step(self, state, text):
        if os.path.exists({armed!r}):
            with open({armed!r}, "a") as file:
                file.write("x")
            if os.path.getsize({armed!r}) > 14:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(state, text)
"""


def test_a_run_that_was_killed_within_a_rollout_ends_bit_for_bit(calling_folder, questions_file, tmp_path):
    armed, path = tmp_path / "armed", tmp_path / "killer.py"
    path.write_text(KILLED.format(armed=str(armed)))
    words = f"train --data {questions_file} --model {calling_folder} --source on-policy --environment {path}:Killer"
    words += " --objective grpo --batch_size 2 --epochs 9 --max_steps 3 --eval_fraction 0 --save_every 1"
    words += " --sampling.num_completions 3 --sampling.max_new_tokens 14 --sampling.temperature 2"
    words += " --rollout.max_turns 3 --rollout.total_tokens 80"

    def run(*more: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        command = [sys.executable, "-m", "preftune", *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*words.split(), "--output", str(whole)).returncode == 0
    armed.touch()
    assert run(*words.split(), "--output", str(cut)).returncode == -9
    armed.unlink()
    assert not (cut / "final").exists() and (cut / "checkpoints").exists()
    done = run("train", "--resume", str(cut))
    assert done.returncode == 0, done.stderr
    assert same_bits(weights_of(cut / "final"), weights_of(whole / "final"))
    assert timeless(metric_rows(cut)) == timeless(metric_rows(whole))


def sampled(model, data, **settings):
    sampling = SampleOptions(num_completions=2, max_new_tokens=14, temperature=2.0)
    limits = {"environment": CALCULATOR, "total_tokens": 200} | settings.pop("rollout", {})
    chosen = {"sampling": sampling, "rollout": RolloutOptions(**limits)} | settings
    made = SampleConfig(model=str(model), prompts=data, **chosen)
    return sampled_rows(made, Reporter(quiet=True))


def test_what_sample_writes_trains_on_the_same_tokens(calling_folder, questions_file, tmp_path):
    """The scored tokens of the file as training reads it are as many as were drawn, row by row."""
    rows = sampled(calling_folder, questions_file)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in QUESTIONS]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = load_tokenizer(str(calling_folder), LoadOptions())
    groups = prepare(path, tokenizer, "rewards", DataOptions()).groups
    by_prompt = {group.origin: group for group in groups}
    assert len(by_prompt) == len(rows)
    counts = [list(group.num_scored) for group in groups]
    canonical = 0
    for row, group, found in zip(rows, groups, counts, strict=True):
        for count, total, ids, mine in zip(
            row["num_tokens"], row["num_context"], group.completions, found, strict=True
        ):
            canonical += (mine, len(ids)) == (count, count + total)
    assert canonical > len(rows)  # hot samples may spell a text in tokens of their own


def test_sample_continues_from_its_journal(calling_folder, questions_file, tmp_path):
    whole = sampled(calling_folder, questions_file)
    output = tmp_path / "rows.jsonl"
    settings = {
        "output": str(output),
        "sampling": SampleOptions(num_completions=2, max_new_tokens=14, temperature=2.0, sample_batch=4),
    }
    assert sampled(calling_folder, questions_file, **settings) == whole
    journal = Path(f"{output}.journal")
    lines = [line for line in journal.read_text().splitlines() if line]
    assert len(lines) == len(QUESTIONS)
    changed = json.loads(lines[0])
    changed["row"]["ended_by"] = ["kept", "kept"]
    journal.write_text("\n".join([json.dumps(changed), *lines[1:3], lines[3][:40]]))
    again = sampled(calling_folder, questions_file, **settings)
    assert again[0]["ended_by"] == ["kept", "kept"] and again[1:] == whole[1:]


FAULTS = {
    "hangs": "no answer within 0.5 s",
    "raises": "it raised RuntimeError",
    "nonsense": "step returned 3 instead of",
    "speaks for the model": "has not the role user or tool",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_hostile_environment_is_one_sentence_if_it_always_fails(
    how, calling_folder, questions_file, tmp_path
):
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    with pytest.raises(TrainingError, match=rf"failed in all of 12 rollouts; got step 1: .*{FAULTS[how]}"):
        sampled(
            calling_folder,
            questions_file,
            rollout={"environment": f"{path}:Hostile(how='{how}')", "step_timeout_s": 0.5, "parallel": 12},
        )


def test_a_rollout_that_fails_alone_is_counted_and_has_no_reward(calling_folder, questions_file, tmp_path):
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    rows = sampled(
        calling_folder, questions_file, rollout={"environment": f"{path}:Hostile(how=raises, only='8')"}
    )
    outcomes = {row["answer"]: (row["ended_by"], row["rewards"]) for row in rows}
    assert outcomes["8"] == (["failed"] * 2, [None] * 2)
    assert outcomes["5"] == (["done"] * 2, [1.0] * 2)


def test_an_environment_in_its_own_process_may_die(tmp_path):
    path = tmp_path / "hostile.py"
    path.write_text(HOSTILE)
    named = resolve_environment(f"{path}:Hostile(how=dies, only='8')")
    steps = Steps(named, RolloutOptions(process=True, parallel=1, step_timeout_s=60.0))
    states = steps.reset([{"answer": "8"}, {"answer": "5"}])
    lost, (_, reply) = steps.step(states, ["a", "b"])
    assert isinstance(lost, EnvironmentFault) and "the end of its process, with exit code 7" in str(lost)
    assert reply.reward == 1.0 and reply.turns == ()


@needs_sandbox
def test_a_hostile_program_gives_a_turn_that_says_so():
    tool = resolve_environment("python(limit_s=1, most_characters=60)").environment

    def told(*programs: str) -> str:
        state = tool.reset({})
        for program in programs:
            turn, _ = tool.step(state, f"So:\n```python\n{program}\n```\n")
        return turn["content"]

    assert told("6 * 7") == "```output\n42\n```"
    assert told("a = 3\nprint('not again')", "a * 2") == "```output\n6\n```"
    assert "[killed: no end within 1 s]" in told("while True: pass")
    assert "[the output is cut here]" in told("while True: print('flood')")
    assert "exit code 7" in told("import os\nos._exit(7)")
    assert "ZeroDivisionError: division by zero (line 1)" in told("1 / 0")
    assert tool.step(tool.reset({}), "The answer is 42.") == (None, None)


REFUSED = {
    "no such environment": (
        {"rollout": {"environment": "pyhton"}},
        "Unknown environment.* Did you mean python",
    ),
    "no reward": ({"rollout": {"environment": "self-check"}}, "'self-check' gives no reward"),
    "a stop text": (
        {"sampling": SampleOptions(num_completions=3, stop=["x"])},
        "sampling.stop has no place in rollouts",
    ),
    "limits without effect": (
        {"rollout": {"environment": None}, "reward": "brief"},
        "rollout.max_turns has no effect",
    ),
    "an answer beyond all": (
        {"rollout": {"total_tokens": 9}},
        "total_tokens is less than the budget of one answer",
    ),
    "its reward without it": (
        {
            "reward": "0.5*environment + 0.5*brief",
            "rollout": {"environment": None, "max_turns": 4, "total_tokens": 512},
        },
        "'environment' is what an environment gives",
    ),
    "own process of ours": (
        {"reward": "brief", "rollout": {"environment": "self-check", "process": True}},
        "Only an environment of yours can run in a separate process",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused(case, calling_folder, questions_file, tmp_path):
    settings, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        train(config(calling_folder, questions_file, tmp_path / "run", **settings), quiet=True)


def test_a_self_check_asks_once_and_the_reward_judges_the_last_answer(
    calling_folder, questions_file, tmp_path
):
    run = train(
        config(
            calling_folder,
            questions_file,
            tmp_path / "run",
            rollout={"environment": "self-check(question='Sure?')"},
            reward="exact",
            max_steps=1,
        ),
        quiet=True,
    )
    rows = [json.loads(line) for line in (run.folder / "completions.jsonl").read_text().splitlines()]
    for row in rows:
        for turns, text in zip(row["turns"], row["completions"], strict=True):
            assert [turn["content"] for turn in turns if turn["role"] == "user"] in (["Sure?"], [])
            assert turns[-1]["content"] == text


def test_verifiers_are_refused_without_the_library():
    try:
        import verifiers  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"need the library verifiers.*preftune\[environments\]"):
            resolve_environment("verifiers:toy")


def test_rewards_of_answers_are_credited_to_their_tokens(calling_folder, questions_file, tmp_path):
    """Each answer's reward stands at its last scored token; the sum is the reward of the rollout."""
    path = tmp_path / "paying.py"
    path.write_text(PAYING)
    settings = {"objective": REINFORCE(credit="step"), "reward": "environment(by_answer=true)"}
    settings["rollout"] = {"environment": f"{path}:Paying"}
    run = train(config(calling_folder, questions_file, tmp_path / "run", max_steps=1, **settings), quiet=True)
    rows = [json.loads(line) for line in (run.folder / "completions.jsonl").read_text().splitlines()]
    several = 0
    for row in rows:
        for turns, reward, steps in zip(row["turns"], row["rewards"], row["reward_steps"], strict=True):
            answers = sum(turn["role"] == "assistant" for turn in turns)
            assert len(steps) == answers and sum(steps) == pytest.approx(reward)
            several += answers > 1
    assert several


def test_answers_end_where_context_begins():
    mask = np.array([True, True, False, True, False, False, True, True])
    group = Group(
        prompt=np.array([1]),
        completions=(np.arange(8), np.arange(3)),
        scored=(mask, np.array([True, True, True])),
        rewards=(7.0, None),
    )
    found = with_answer_rewards(group, [(1.0, 2.0, 4.0), None]).step_rewards
    assert found[0].tolist()[1:3] == [1.0, 2.0] and found[0][4] == 4.0
    assert np.isnan(found[0][[0, 3]]).all() and np.isnan(found[1]).all() and len(found[1]) == 3
