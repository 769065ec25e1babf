"""Which tokens end a completion, and which are never drawn."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from preftune.data.options import DataOptions
from preftune.data.render import make_renderer
from preftune.errors import DataError
from preftune.model.limits import changing_length, positions_of
from preftune.sampling.sample import SampleOptions, sample
from preftune.sampling.tokens import end_tokens, textless_tokens
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.models import tiny_model

PROMPT = np.arange(5, 15, dtype=np.int32)


def drawn(model, renderer, **options):
    settings = SampleOptions(**{"num_completions": 48, "max_new_tokens": 32} | options)
    return sample(model, renderer, [PROMPT], settings, 0)[0]


@pytest.fixture
def renderer():
    return make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"), DataOptions())


def model_with(rows: int, **more):
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        **more,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_every_end_token_of_the_model_ends_a_completion(renderer):
    model = model_with(len(renderer.tokenizer))
    ends = [renderer.end_of_turn, 70, 71, 72, 73, 74]
    model.generation_config.eos_token_id = ends
    assert end_tokens(model, renderer) == {*ends, *renderer.stop_ids}
    found = drawn(model, renderer)
    assert sum(int(one.token_ids[-1]) in ends for one in found) > 5
    for one in found:
        inside = set(one.token_ids[:-1].tolist())
        assert not inside & set(ends)
        assert one.ended == (int(one.token_ids[-1]) in ends)


def test_ids_without_text_are_never_drawn(renderer):
    known = len(renderer.tokenizer)
    model = model_with(4 * known)
    assert len(textless_tokens(model, renderer)) == 3 * known
    found = drawn(model, renderer)
    assert max(int(one.token_ids.max()) for one in found) < known
    for one in found:  # of the whole vocabulary, as the trainer scores it
        assert one.behaviour_logp.tolist() == one.logp.tolist()
    assert textless_tokens(model_with(known), renderer) is None
    greedy = drawn(model, renderer, num_completions=1, temperature=0.0)
    assert int(greedy[0].token_ids.max()) < known


def test_a_growing_row_may_not_cross_the_original_context(renderer):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = model_with(len(renderer.tokenizer), rope_parameters=rope)
    assert changing_length(model.config) == 256 and positions_of(model.config) is None
    with pytest.raises(DataError, match="original context"):
        drawn(model, renderer, max_new_tokens=250)
    assert changing_length(tiny_model("llama").config) is None
    assert positions_of(tiny_model("gpt2").config) == 256
