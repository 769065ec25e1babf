"""Messages, and failures of the machine that become messages."""

import pytest
import torch

from preftune.errors import DataError, TrainingError, memory_errors, shown


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
