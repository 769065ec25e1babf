"""The engine: draws follow the model's exact distribution, log-probabilities are those of scoring, company
changes nothing.
"""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    LogitsProcessorList,
    MambaConfig,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from preftune.data.render import make_renderer
from preftune.errors import ConfigError, DataError, ModelError
from preftune.model.attention_segments import SEGMENTS
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy, score_groups
from preftune.model.proof import choose_sharing
from preftune.sampling.engine import choose_engine, start_rows
from preftune.sampling.sample import SampleOptions, sample
from preftune.types import Group
from tests.data.tokenizers_for_tests import byte_tokenizer
from tests.models import _SHAPE, CONFIGS, tiny_model

RENDERER = make_renderer(byte_tokenizer())
END = 2  # </s>
assert RENDERER.stop_ids == (END,), "what the tests hold to be the end of an answer is it"
PROMPTS = [
    np.array(ids, dtype=np.int32)
    for ids in ([5, 9, 30, 7, 7, 12, 40, 3], [8], [11, 4, 6, 20], [22, 31, 9], [6, 5, 4, 3])
]

MORE = {
    "gpt_oss": lambda: GptOssConfig(
        **_SHAPE,
        num_local_experts=2,
        num_experts_per_tok=2,
        sliding_window=5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "lfm2": lambda: Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention"]),
    "bloom": lambda: BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "mamba": lambda: MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8),
}
ENGINES = {name: "shared" for name in CONFIGS} | {
    "gpt_oss": "shared",
    "lfm2": "repeated",
    "bloom": "repeated",
    "mamba": "recomputed",
}


def model_of(name: str):
    if name in CONFIGS:
        return tiny_model(name)
    model = AutoModelForCausalLM.from_config(MORE[name]()).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.25)
    return model


def ids(drawn):
    return [[one.token_ids.tolist() for one in ones] for ones in drawn]


# The distribution


def small_model():
    """Six tokens, so that every completion of three tokens can be listed."""
    config = LlamaConfig(**(_SHAPE | {"vocab_size": 6}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.25)
    return model


def every_completion(budget: int) -> list[tuple[int, ...]]:
    open_ones = [tokens for tokens in itertools.product(range(6), repeat=budget) if END not in tokens[:-1]]
    ended = [
        (*tokens, END)
        for size in range(budget - 1)
        for tokens in itertools.product((0, 1, 3, 4, 5), repeat=size)
    ]
    return ended + open_ones


@torch.no_grad()
def exact(model, prompt, options) -> dict[tuple[int, ...], tuple[float, float]]:
    """(probability drawn with, probability under the model as it is) of each completion; transformers' own
    warpers truncate.
    """
    warpers = [TemperatureLogitsWarper(options.temperature)] if options.temperature != 1 else []
    warpers += [TopKLogitsWarper(options.top_k)] if options.top_k else []
    warpers += [TopPLogitsWarper(options.top_p)] if options.top_p < 1 else []
    warpers += [MinPLogitsWarper(options.min_p)] if options.min_p else []
    found = {}
    for tokens in every_completion(options.max_new_tokens):
        logits = (
            model(torch.tensor([[*prompt, *tokens]]), use_cache=False)
            .logits[0, len(prompt) - 1 : -1]
            .double()
        )
        warped = LogitsProcessorList(warpers)(None, logits).log_softmax(-1)
        at = torch.tensor(tokens)[:, None]
        found[tokens] = tuple(
            float(one.gather(1, at).sum().exp()) for one in (warped, logits.log_softmax(-1))
        )
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.75},
        {"min_p": 0.3},
        {"temperature": 1.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_completions_follow_the_exact_distribution(settings):
    model, count = small_model(), 6000
    options = SampleOptions(num_completions=count, max_new_tokens=3, **settings)
    prompts = [np.array([1, 4, 5], dtype=np.int32), np.array([3, 3, 0, 1, 5], dtype=np.int32)]
    for prompt, drawn in zip(prompts, sample(model, RENDERER, prompts, options, 11), strict=True):
        probability = exact(model, prompt, options)
        assert abs(sum(p for p, _ in probability.values()) - 1) < 1e-6
        counts = Counter(tuple(one.token_ids.tolist()) for one in drawn)
        assert all(probability[tokens][0] > 0 for tokens in counts)
        large = {tokens for tokens, (p, _) in probability.items() if p * count >= 5}
        cells = [(counts[tokens], probability[tokens][0] * count) for tokens in large]
        rest = sum(p for tokens, (p, _) in probability.items() if tokens not in large) * count
        if rest > 1e-6:
            cells.append((count - sum(seen for seen, _ in cells), rest))
        statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
        p_value = float(
            torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2))
        )
        assert p_value > 1e-3, (statistic, len(cells))
        for one in drawn[:200]:
            drawn_with, plain = probability[tuple(one.token_ids.tolist())]
            assert float(np.exp(one.behaviour_logp.sum())) == pytest.approx(drawn_with, rel=1e-4)
            assert float(np.exp(one.logp.sum())) == pytest.approx(plain, rel=1e-4)


def test_completions_of_one_prompt_are_independent():
    """Pairs of completions, of one prompt and of two, agree as often as independent draws do."""
    model = small_model()
    prompt = np.array([1, 4, 5], dtype=np.int32)
    options = SampleOptions(num_completions=2, max_new_tokens=2)
    drawn = ids(sample(model, RENDERER, [prompt] * 4000, options, 3))
    chance = sum(p * p for p, _ in exact(model, prompt, options).values())
    spread = 4 * (chance * (1 - chance) / 4000) ** 0.5
    assert abs(np.mean([a == b for a, b in drawn]) - chance) < spread
    assert abs(np.mean([a[0] == b[0] for a, b in itertools.pairwise(drawn)]) - chance) < spread


# Every architecture


@pytest.mark.parametrize("name", ENGINES)
def test_log_probabilities_are_those_of_scoring(name):
    model = model_of(name)
    assert choose_engine(model)[0] == ENGINES[name]
    sharing, _ = choose_sharing(model, True)
    options = SampleOptions(num_completions=5, max_new_tokens=16)
    drawn = sample(model, RENDERER, PROMPTS, options, 0)
    lengths = {len(one.token_ids) for ones in drawn for one in ones}
    assert len(lengths) > 1  # some ended early, so that rows were dropped on the way
    groups = [
        Group(prompt=prompt, completions=tuple(one.token_ids for one in ones))
        for prompt, ones in zip(PROMPTS, drawn, strict=True)
    ]
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")
    for ones, logps in zip(drawn, score_groups(policy, groups, LayoutOptions()), strict=True):
        for one, logp in zip(ones, logps, strict=True):
            assert one.behaviour_logp.dtype == np.float32
            np.testing.assert_allclose(one.behaviour_logp, logp, atol=1e-4)
            np.testing.assert_array_equal(one.behaviour_logp, one.logp)


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("bloom", "mamba")])
def test_every_engine_draws_the_same(name):
    """Also far beyond the sliding window, and over the size by which the room for keys grows."""
    model = model_of(name)
    options = SampleOptions(num_completions=2, max_new_tokens=70)
    expected = sample(model, RENDERER, PROMPTS, options, 4, engine="recomputed")
    assert max(len(one.token_ids) for ones in expected for one in ones) == 70
    for engine in {"repeated", ENGINES[name]}:
        drawn = sample(model, RENDERER, PROMPTS, options, 4, engine=engine)
        assert ids(drawn) == ids(expected)
        for one, two in zip(itertools.chain(*drawn), itertools.chain(*expected), strict=True):
            np.testing.assert_allclose(one.logp, two.logp, atol=1e-4)


def test_bf16_and_autocast():
    model = tiny_model("llama")
    options = SampleOptions(num_completions=4, max_new_tokens=12)
    sharing, _ = choose_sharing(model, True)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = sample(model, RENDERER, PROMPTS, options, 0)
    policy = Policy(model=model, precision="bf16", sharing=sharing, sharing_reason="")
    groups = [
        Group(prompt=p, completions=tuple(one.token_ids for one in ones))
        for p, ones in zip(PROMPTS, drawn, strict=True)
    ]
    off = [
        np.abs(one.logp - logp)
        for ones, logps in zip(drawn, score_groups(policy, groups, LayoutOptions()), strict=True)
        for one, logp in zip(ones, logps, strict=True)
    ]
    assert np.concatenate(off).mean() < 0.05
    low = tiny_model("llama", torch.bfloat16)
    assert choose_engine(low)[0] == "shared"
    assert len(sample(low, RENDERER, PROMPTS, options, 0)) == len(PROMPTS)


def test_an_engine_that_is_not_exact_is_not_chosen():
    model = tiny_model("llama")
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(
        x, position_ids * 0 + torch.arange(x.shape[1])
    )  # blind to a cache
    engine, reason = choose_engine(model)
    assert engine == "recomputed" and reason.startswith("shared prompts change its logits (by 0.")
    head = model.get_output_embeddings()
    model.forward = lambda **kw: type("Out", (), {"logits": 2 * head(model.model(**kw).last_hidden_state)})()
    with pytest.raises(ModelError, match="Nothing exact can be drawn"):
        choose_engine(model)


def test_rows_of_a_prompt_that_has_ended_take_its_keys_along():
    model = tiny_model("llama")
    with torch.no_grad():
        rows = start_rows("shared", model, PROMPTS[:3], 2)
        rows.step(torch.tensor([3, 4, 5, 6, 7, 8]))
        rows.keep(torch.tensor([1, 4, 5]))
        assert rows._at.keys[0].shape[0] == 2 and rows._at.width == 2
        rows.step(torch.tensor([9, 10, 11]))
        for row, tokens in enumerate(([*PROMPTS[0], 4, 9], [*PROMPTS[2], 7, 10], [*PROMPTS[2], 8, 11])):
            expected = model.get_decoder()(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
            torch.testing.assert_close(rows.hidden[row], expected, rtol=1e-4, atol=1e-4)


# What a draw depends on


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_company_changes_nothing(settings):
    model = tiny_model("qwen3_sliding")
    options = SampleOptions(num_completions=4, max_new_tokens=12, **settings)
    keys = [70, 2**64 - 1, 0, 5, 6]
    expected = ids(sample(model, RENDERER, PROMPTS, options, 9, keys=keys))
    for batch in (1, 8, 12):
        other = SampleOptions(num_completions=4, max_new_tokens=12, sample_batch=batch, **settings)
        assert ids(sample(model, RENDERER, PROMPTS, other, 9, keys=keys)) == expected
    alone = [
        ids(sample(model, RENDERER, [p], options, 9, keys=[key]))[0]
        for p, key in zip(PROMPTS, keys, strict=True)
    ]
    assert alone == expected
    backwards = sample(model, RENDERER, PROMPTS[::-1], options, 9, keys=keys[::-1])
    assert ids(backwards)[::-1] == expected
    fewer = SampleOptions(num_completions=2, max_new_tokens=5, **settings)
    assert ids(sample(model, RENDERER, PROMPTS, fewer, 9, keys=keys)) == [
        [one[:5] for one in ones[:2]] for ones in expected
    ]


def test_keys_are_places_unless_they_are_given():
    model = tiny_model("llama")
    options = SampleOptions(num_completions=2, max_new_tokens=6)
    by_place = ids(sample(model, RENDERER, PROMPTS, options, 1))
    assert by_place == ids(sample(model, RENDERER, PROMPTS, options, 1, keys=range(5)))
    assert by_place != ids(sample(model, RENDERER, PROMPTS, options, 1, keys=range(5, 10)))
    assert by_place != ids(sample(model, RENDERER, PROMPTS, options, 2))


def test_the_same_call_gives_the_same_bits():
    model = tiny_model("gemma3")
    options = SampleOptions(num_completions=8, max_new_tokens=20, temperature=0.9)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one, two = (list(itertools.chain(*sample(model, RENDERER, PROMPTS, options, 5))) for _ in range(2))
    assert [a.token_ids.tolist() for a in one] == [b.token_ids.tolist() for b in two]
    assert [a.behaviour_logp.tobytes() for a in one] == [b.behaviour_logp.tobytes() for b in two]
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_the_model_is_left_as_it_was():
    model = tiny_model("gpt2")  # with a dropout of 0.1, which must not act
    options = SampleOptions(num_completions=2, max_new_tokens=5)
    expected = ids(sample(model, RENDERER, PROMPTS, options, 0))
    model.train()
    model.transformer.ln_f.eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert ids(sample(model, RENDERER, PROMPTS, options, 0)) == expected
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == SEGMENTS
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())
    model.get_decoder().forward = None
    with pytest.raises(TypeError):
        sample(model, RENDERER, PROMPTS, options, 0, engine="shared")
    assert {name: module.training for name, module in model.named_modules()} == before


# Ends


def test_a_budget_of_one():
    model = tiny_model("llama")
    drawn = sample(model, RENDERER, PROMPTS, SampleOptions(num_completions=40, max_new_tokens=1), 0)
    for ones in drawn:
        assert {len(one.token_ids) for one in ones} == {len(one.logp) for one in ones} == {1}
        assert all(one.ended == (one.token_ids[0] == END) for one in ones)


def test_greedy_draws_are_certain():
    model = tiny_model("llama")
    [one], *_ = sample(model, RENDERER, PROMPTS, SampleOptions(temperature=0.0, max_new_tokens=4), 0)
    assert one.behaviour_logp.tolist() == [0.0] * len(one.token_ids)
    assert (one.logp < 0).all()


def test_stop_texts_cut_after_the_token_that_completes_them():
    model = tiny_model("llama")
    options = SampleOptions(num_completions=30, max_new_tokens=40)
    free = [one for ones in sample(model, RENDERER, PROMPTS, options, 2) for one in ones]
    texts = "".join(one.text for one in free)
    (stop, _), *_ = Counter(texts[k : k + 2] for k in range(len(texts) - 1)).most_common()
    stopping = SampleOptions(num_completions=30, max_new_tokens=40, stop=["never written", stop])
    cut = [one for ones in sample(model, RENDERER, PROMPTS, stopping, 2) for one in ones]
    stopped = 0
    for whole, one in zip(free, cut, strict=True):
        kept = len(one.token_ids)
        assert one.token_ids.tolist() == whole.token_ids[:kept].tolist()
        assert stop not in RENDERER.tokenizer.decode(one.token_ids[:-1].tolist(), skip_special_tokens=True)
        if stop in one.text:
            stopped += 1
            assert one.ended and one.token_ids[-1] != END
            assert len(one.logp) == len(one.behaviour_logp) == kept
        else:
            assert (kept, one.ended, one.text) == (len(whole.token_ids), whole.ended, whole.text)
    assert stopped > 10


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_p": 1.0}, "min_p is out of range"),
        ({"min_p": -0.1}, "min_p is out of range"),
        ({"stop": ["a", ""]}, "stop holds an empty text"),
        ({"temperature": 0.0, "min_p": 0.1}, "no effect at temperature 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        SampleOptions(**settings)


def test_prompts_and_keys_that_cannot_be_used():
    model = tiny_model("gpt2")  # with 256 learned positions
    long = np.full(250, 5, dtype=np.int32)
    fits = SampleOptions(max_new_tokens=7)
    assert len(sample(model, RENDERER, [long], fits, 0)[0][0].token_ids) == 7
    with pytest.raises(
        DataError, match="Prompt 1 leaves no room for a completion; got 250 tokens and a budget of 8"
    ):
        sample(model, RENDERER, [PROMPTS[0], long], SampleOptions(max_new_tokens=8), 0)
    with pytest.raises(DataError, match="Prompt 0 has no tokens"):
        sample(model, RENDERER, [np.zeros(0, dtype=np.int32)], fits, 0)
    with pytest.raises(ConfigError, match="Every prompt wants a key; got 1 keys; expected 2"):
        sample(model, RENDERER, PROMPTS[:2], fits, 0, keys=[1])
    with pytest.raises(ConfigError, match="key of a prompt is out of range"):
        sample(model, RENDERER, PROMPTS[:2], fits, 0, keys=[1, -1])
    assert sample(model, RENDERER, [], fits, 0) == []
