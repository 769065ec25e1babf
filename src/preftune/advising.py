"""The verb `advise`: from a diagnosis, or from a problem of the laboratory, to what to train on and with which objective."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.cli import print_json
from preftune.config import parse_settings
from preftune.diagnose.advice import Advice, Recommendation, advise
from preftune.diagnose.evidence import Evidence, as_json, read_evidence
from preftune.errors import ConfigError
from preftune.terminal import clean_terminal

WIDTH = 100
HEADINGS = {"source": "Where completions come from", "objective": "Objective", "collect": "What to collect or mend next"}


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """What to do with this data: where completions come from, the objective, what to collect next.

    What is given here wins over the file.

    Args:
        diagnosis: what `preftune diagnose data --output` wrote, or its evidence alone, as JSON.
        problem: in its place a problem of the laboratory, a shipped one or a YAML file; its evidence is measured from samples.
        can_sample: whether own samples can be drawn in training.
        can_reward: whether they can be judged by a reward.
        can_hold_reference: whether a reference can be scored.
        keep_length: whether answers must not grow longer, though the data prefer longer ones.
        samples: how many own samples can be paid.
        steps: how many gradient steps can be paid.
        seed: of the problem's samples.
        json: print JSON.
    """

    diagnosis: str | None = None
    problem: str | None = None
    can_sample: bool | None = None
    can_reward: bool | None = None
    can_hold_reference: bool | None = None
    keep_length: bool | None = None
    samples: int | None = None
    steps: int | None = None
    seed: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if (self.diagnosis is None) == (self.problem is None):
            raise ConfigError("Advice needs a diagnosis or a problem", got="both" if self.problem else "neither",
                              do="`preftune diagnose data DATA --output FILE` writes a diagnosis")  # fmt: skip
        if self.seed is not None and (self.problem is None or self.seed < 0):
            raise ConfigError("seed cannot be used", got=self.seed, expected="0 or more, and a problem to draw samples of")

    def evidence(self) -> Evidence:
        """As it is on file or measured, with the user's answers."""
        known = self._read() if self.diagnosis is not None else self._measured()
        return known.with_answers(
            can_sample=self.can_sample, can_reward=self.can_reward, can_hold_reference=self.can_hold_reference,
            keep_length=self.keep_length, samples=self.samples, steps=self.steps,
        )  # fmt: skip

    def _read(self) -> Evidence:
        path = Path(self.diagnosis or "")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Cannot read the diagnosis {path}", got=str(error),
                              do="`preftune diagnose data DATA --output FILE` writes one") from error  # fmt: skip
        return read_evidence(text, str(path))

    def _measured(self) -> Evidence:
        from preftune.lab.evidence import measured  # imports torch, which a diagnosis on file does without
        from preftune.lab.problem import load_problem

        problem = load_problem(self.problem or "")
        return measured(problem, groups=problem.prompts.train, can_reward=self.can_reward is not False, seed=self.seed or 0)


def run_advise(arguments: Sequence[str]) -> int:
    settings = parse_settings(AdviseConfig, arguments, prog="preftune advise", positional="diagnosis",
                              description="What to train on, with which objective: preftune advise DIAGNOSIS.json")  # fmt: skip
    evidence = settings.evidence()
    advice = advise(evidence)
    if settings.json:
        print_json({"advice": advice.as_json(), "evidence": as_json(evidence)})
    else:
        _tell(advice, evidence)
    return 0


def _tell(advice: Advice, evidence: Evidence) -> None:
    lines = []
    for name, heading in HEADINGS.items():
        recommended: tuple[Recommendation, ...] = getattr(advice, name)
        if not recommended:
            continue
        lines.append(heading)
        for place, one in enumerate(recommended, start=1):
            flag = "--objective." if name == "objective" else ""
            settings = [f"{flag}{key} {_shown(value)}" for key, value in one.settings.items()]
            lines.append("  ".join([f"  {place}. {one.choice}", *settings]))
            lines += textwrap.wrap(one.reason, WIDTH, initial_indent="     ", subsequent_indent="     ")
            if one.evidence:
                lines.append(f"     measured: {', '.join(f'{key} {_shown(value)}' for key, value in one.evidence.items())}")
            lines.append(f"     rests on: {one.basis}")
        lines.append("")
    missing = [name for name in ("can_sample", "can_reward", "noise") if getattr(evidence, name) is None]
    if missing:
        lines.append(f"Not known, and the advice would be better for it: {', '.join(missing)}.")
    print(clean_terminal("\n".join(lines)))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{_shown(one)}" for key, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"advise": run_advise}
