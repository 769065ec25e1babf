"""Messages, and failures of the machine that become messages."""

from dataclasses import dataclass, field

import pytest
import torch

from preftune.errors import (
    ConfigError,
    DataError,
    TrainingError,
    check_range,
    memory_errors,
    refuse_idle,
    shown,
    without_secrets,
)


def test_a_message_says_what_got_expected_and_what_to_do():
    error = DataError("The field x is missing", got="nothing", expected="text", do="Add it")
    assert str(error) == "The field x is missing; got nothing; expected text. Add it."
    assert str(DataError("It is so.", got=3)) == "It is so; got 3."
    assert isinstance(error, ValueError)


def test_values_are_shown_short_and_escaped():
    assert shown("a\x1b[31m") == "'a\\x1b[31m'"
    assert len(shown("x" * 500)) == 80


def test_running_out_of_memory_says_what_to_change():
    with pytest.raises(TrainingError, match=r"not enough memory.*micro_batch_tokens"), memory_errors():
        torch.empty(2**50)
    with pytest.raises(TrainingError, match="not enough memory"), memory_errors():
        raise MemoryError


def test_other_failures_pass_unchanged():
    with pytest.raises(RuntimeError, match="shape") as caught, memory_errors():
        raise RuntimeError("a shape is wrong")
    assert not isinstance(caught.value, TrainingError)
    own = TrainingError("out of memory of another kind")
    with pytest.raises(TrainingError) as caught, memory_errors():
        raise own
    assert caught.value is own


@pytest.mark.parametrize(
    "told",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_running_out_of_memory_on_a_device_says_what_to_change(told):
    error = torch.OutOfMemoryError(told) if "out of" in told else RuntimeError(told)
    with (
        pytest.raises(TrainingError, match=r"not enough memory; got CUDA .*micro_batch_tokens"),
        memory_errors(),
    ):
        raise error


@dataclass(frozen=True)
class Some:
    rate: float | None = 1.0
    names: tuple[str, ...] = field(default_factory=tuple)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "expected"),
    [
        ("[1, inf)", (1, 10**400, None), (0, 0.5, float("inf"), float("nan")), "at least 1"),
        ("(0, inf)", (1e-300, 3), (0, -1, float("inf"), float("nan")), "a number above 0"),
        ("[0, 1)", (0, 0.5), (1, -1e-9, float("nan")), r"\[0, 1\)"),
        ("(0, 1]", (1, 0.5), (0, 1.1), r"\(0, 1\]"),
    ],
)
def test_a_range_is_checked_and_told(interval, inside, outside, expected):
    for value in inside:
        check_range(Some(rate=value), interval, "rate")
    for value in outside:
        with pytest.raises(ConfigError, match=f"some.rate is out of range; got .*; expected {expected}"):
            check_range(Some(rate=value), interval, "rate", prefix="some.")


def test_what_differs_from_its_default_is_refused_where_it_has_no_effect():
    refuse_idle(Some(), "here", "rate", "names")
    with pytest.raises(ConfigError, match=r"^names has no effect here; got \('a',\)\. Leave it out\.$"):
        refuse_idle(Some(names=("a",)), "here", "rate", "names")
    with pytest.raises(ConfigError, match=r"^x\.rate has no effect here; got 3; expected 4\. Go\.$"):
        refuse_idle(Some(rate=2.0), "here", "rate", prefix="x.", got=3, expected="4", do="Go")


@pytest.mark.parametrize(
    "text",
    [
        "There is no model 'https://user:hunter2@host/m'",
        "https://hunter2@host:80/x.jsonl does not exist",
        "http://host/x?API_KEY=hunter2&page=3 is no file",
        "https://host/x?page=3&access_token=hunter2",
    ],
)
def test_no_message_holds_the_secret_of_an_address(text):
    told = str(ConfigError(text, got=text, do=f"Look at {text}"))
    assert "hunter2" not in told and "host" in told and told.count("[hidden]") == 3
    assert "user@host.org" in str(ConfigError("Write to user@host.org, not to http://host/a@b?page=3"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at https://user:pa55@host/x", "at https://[hidden]@host/x"),
        ("at https://user:pa/5?5#5@host/x", "at https://[hidden]@host/x"),
        ("at http://host:8080/a@b", "at http://host:8080/a@b"),
        ("at https://host/a@b, mail me@host", "at https://host/a@b, mail me@host"),
        ("https://host/x?api_key=abc&n=1", "https://host/x?api_key=[hidden]&n=1"),
        ("the header was Bearer sk-1234-abcd", "the header was Bearer [hidden]"),
        ("false", "false"),
    ],
)
def test_messages_hide_passwords_keys_and_values_of_secret_variables(text, expected, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_KEY", "sk-1234-abcd")
    monkeypatch.setenv("SHORT_TOKEN", "false")
    assert without_secrets(text) == expected
    assert expected in str(DataError("It is so", got=text))
