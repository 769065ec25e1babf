"""Completions drawn from a model: reproducible, what the logits say, and not touched by padding or company."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from preftune.data.options import DataOptions
from preftune.data.render import make_renderer
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.model.policy import Policy, score_groups
from preftune.sampling.engine import choose_engine
from preftune.sampling.sample import SampleOptions, sample
from preftune.types import Group, Record


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(str(tiny_folder), LoadOptions())


@pytest.fixture(scope="module")
def renderer(tiny_folder):
    return make_renderer(load_tokenizer(str(tiny_folder), LoadOptions()), DataOptions().template)


@pytest.fixture(scope="module")
def prompts(renderer):
    texts = [
        "Hi",
        "What is the capital of France?",
        "Write a short poem about the sea, please, and a long one too.",
    ]
    return [renderer.render(Record(prompt=text, completions=())).prompt for text in texts]


def ids(drawn):
    return [[one.token_ids.tolist() for one in ones] for ones in drawn]


def test_the_same_seed_draws_the_same(model, renderer, prompts):
    options = SampleOptions(num_completions=3, max_new_tokens=8)
    before = torch.get_rng_state()
    first = sample(model, renderer, prompts, options, 7)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers stay as they are
    assert ids(first) == ids(sample(model, renderer, prompts, options, 7))
    assert ids(first) != ids(sample(model, renderer, prompts, options, 8))
    assert [len(ones) for ones in first] == [3, 3, 3]
    assert len({tuple(one) for ones in ids(first) for one in ones}) == 9


def test_a_token_is_fetched_from_the_device_once(model, renderer, prompts, monkeypatch):
    """Token and both log-probabilities of all rows together, however many rows there are."""
    fetched: list[tuple[int, ...]] = []

    def counted(tensor, *, before=torch.Tensor.cpu):
        fetched.append(tuple(tensor.shape))
        return before(tensor)

    engine = choose_engine(model)[0]
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    options = SampleOptions(num_completions=4, max_new_tokens=5)
    drawn = sample(model, renderer, prompts[:1], options, 7, engine=engine)
    assert len(fetched) == max(len(one.token_ids) for one in drawn[0])
    assert fetched[0] == (3, 4)


def test_greedy_takes_the_most_probable_token(model, renderer, prompts):
    drawn = sample(model, renderer, prompts, SampleOptions(temperature=0.0, max_new_tokens=6), 0)
    for prompt, [one] in zip(prompts, drawn, strict=True):
        sequence = torch.from_numpy(np.concatenate([prompt, one.token_ids])).long()[None]
        with torch.no_grad():
            best = model(sequence, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == one.token_ids.tolist()


def test_greedy_is_not_beaten_by_any_neighbor_through_our_scores(model, renderer, prompts):
    """The same through the scoring operation: no other first token has a higher logp."""
    [one] = sample(model, renderer, prompts[:1], SampleOptions(temperature=0.0, max_new_tokens=1), 0)[0]
    policy = Policy(model=model, precision="fp32", sharing="shared", sharing_reason="")
    every = tuple(np.array([token], dtype=np.int32) for token in range(model.config.vocab_size))
    [logps] = score_groups(policy, [Group(prompt=prompts[0], completions=every)], LayoutOptions())
    assert int(np.argmax(np.concatenate(logps))) == one.token_ids[0]


@pytest.mark.parametrize("options", [SampleOptions(temperature=0.0, max_new_tokens=10)], ids=["greedy"])
def test_company_and_padding_change_nothing(options, model, renderer, prompts):
    together = sample(model, renderer, prompts, options, 0)
    alone = [sample(model, renderer, [prompt], options, 0)[0] for prompt in prompts]
    backwards = sample(model, renderer, prompts[::-1], options, 0)[::-1]
    assert len({len(prompt) for prompt in prompts}) == 3
    assert ids(together) == ids(alone) == ids(backwards)


@pytest.mark.parametrize("sample_batch", [1, 2, 4])
def test_every_prompt_gets_its_own_completions(sample_batch, model, renderer, prompts):
    options = SampleOptions(
        num_completions=2, max_new_tokens=3, top_k=1, sample_batch=sample_batch
    )  # top 1 is greedy
    told = []
    drawn = sample(model, renderer, prompts, options, 0, lambda done, of: told.append((done, of)))
    greedy = ids(sample(model, renderer, prompts, SampleOptions(temperature=0.0, max_new_tokens=3), 0))
    assert ids(drawn) == [[one, one] for [one] in greedy]
    assert told[0] == (0, 3) and told[-1] == (3, 3) and told == sorted(told)


def ending(model, renderer, after: int):
    """The model with a head that writes the end-of-turn token whatever came before (0), or never (-1)."""
    import copy

    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight[renderer.end_of_turn] = 0.0
        if after == 0:
            changed.lm_head.weight.zero_()
            changed.lm_head.bias = torch.nn.Parameter(torch.zeros(len(changed.lm_head.weight)))
            changed.lm_head.bias[renderer.end_of_turn] = 50.0
    return changed


def test_ended_and_cut_off(model, renderer, prompts):
    options = SampleOptions(max_new_tokens=5)
    for [one] in sample(ending(model, renderer, 0), renderer, prompts, options, 0):
        assert (one.token_ids.tolist(), one.text, one.ended) == ([renderer.end_of_turn], "", True)
    for [one] in sample(model, renderer, prompts, SampleOptions(max_new_tokens=5, top_k=1), 0):
        assert renderer.end_of_turn not in one.token_ids
        assert (len(one.token_ids), one.ended) == (5, False)
    # Among many draws some end: their last token is the end of the turn, nothing follows it, and the text
    # leaves it out.
    options = SampleOptions(num_completions=200, max_new_tokens=12)
    drawn = [one for ones in sample(model, renderer, prompts, options, 1) for one in ones]
    ended = [one for one in drawn if one.ended]
    assert 0 < len(ended) < len(drawn)
    for one in drawn:
        places = np.flatnonzero(one.token_ids == renderer.end_of_turn).tolist()
        assert places == ([len(one.token_ids) - 1] if one.ended else [])
        assert one.ended or len(one.token_ids) == 12
        assert "<|im_end|>" not in one.text


def test_top_p_and_temperature_are_felt(model, renderer, prompts):
    greedy = ids(sample(model, renderer, prompts, SampleOptions(temperature=0.0, max_new_tokens=6), 0))
    for options in (
        SampleOptions(max_new_tokens=6, top_p=1e-6),
        SampleOptions(max_new_tokens=6, temperature=1e-4),
    ):
        assert ids(sample(model, renderer, prompts, options, 3)) == greedy
    assert ids(sample(model, renderer, prompts, SampleOptions(max_new_tokens=6), 3)) != greedy


def test_what_the_model_recommends_does_not_mix_in(model, renderer, prompts, tiny_folder, tmp_path):
    """Otherwise the draw would not be the policy's, and its log-probabilities not those of the completions."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    extra = {
        "repetition_penalty": 50.0,
        "temperature": 0.01,
        "do_sample": True,
        "top_k": 1,
        "min_new_tokens": 9,
        "suppress_tokens": list(range(20, 300)),
        "max_length": 3,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    opinionated = load_model(str(folder), LoadOptions())
    assert opinionated.generation_config.repetition_penalty == 50.0
    for options in (
        SampleOptions(temperature=0.0, max_new_tokens=12),
        SampleOptions(num_completions=20, max_new_tokens=12),
    ):
        assert ids(sample(opinionated, renderer, prompts, options, 1)) == ids(
            sample(model, renderer, prompts, options, 1)
        )
    assert isinstance(opinionated.generation_config, GenerationConfig)
    assert (
        opinionated.generation_config.repetition_penalty == 50.0
    )  # it stays for who uses the model elsewhere
