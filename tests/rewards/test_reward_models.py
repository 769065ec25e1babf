"""Rewards of weights: against plain transformers, one text at a time; and models that cannot serve."""

import json
import shutil

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from preftune.data.render import make_renderer
from preftune.errors import ConfigError, ModelError, TrainingError
from preftune.rewards import ask, call_reward, resolve_reward
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.folders import save_tiny_model
from tests.models import model_sizes

PROMPTS = ["Hi", "Hi", "What is the capital of France?"]
COMPLETIONS = ["Hello there", "No.", "The capital of France is Paris, I think."]
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def draw(model, seed=0, std=0.3):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * std)
    return model.eval()


def save_reward_model(folder, template=CHATML, num_labels=1, pad=0, **settings):
    tokenizer = byte_tokenizer(template, eos="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **model_sizes(),
        head_dim=8,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        num_labels=num_labels,
        max_position_embeddings=128,
        **settings,
    )
    draw(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


def judged(spec, prompts=PROMPTS, completions=COMPLETIONS, **columns):
    return call_reward(resolve_reward(spec), "model", list(prompts), list(completions), columns)


@torch.no_grad()
def by_transformers(folder, texts):
    """The definition: the library itself, one text at a time, as a model card does it."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    return [
        model(**tokenizer(t, add_special_tokens=False, return_tensors="pt")).logits[0].tolist() for t in texts
    ]


def chat_texts(folder, prompts=PROMPTS, completions=COMPLETIONS):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dialogues = [
        [
            *([{"role": "user", "content": p}] if isinstance(p, str) else p),
            {"role": "assistant", "content": c},
        ]
        for p, c in zip(prompts, completions, strict=True)
    ]
    return [tokenizer.apply_chat_template(dialogue, tokenize=False) for dialogue in dialogues]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_rewards_are_the_librarys_whatever_the_batch(folder, batch_size):
    expected = [scores[0] for scores in by_transformers(folder, chat_texts(folder))]
    assert len({round(value, 3) for value in expected}) == 3
    assert judged(f"model(path={folder}, batch_size={batch_size})") == pytest.approx(expected, abs=1e-5)


def test_a_short_name_and_a_weight(folder):
    one, two = judged(f"model:{folder}"), judged(f"-2*model:{folder}")
    assert two == pytest.approx([-2 * reward for reward in one])


def test_the_whole_dialogue_is_read(folder):
    expected = by_transformers(folder, chat_texts(folder, [TURNS, "Hi"], COMPLETIONS[:2]))
    found = judged(f"model:{folder}", ["Hi", "Hi"], COMPLETIONS[:2], prompt_turns=[TURNS, None])
    assert found == pytest.approx([scores[0] for scores in expected], abs=1e-5)


def test_endings(folder):
    """As the template writes it, up to the end of the turn, and cut off before it."""
    (text,) = chat_texts(folder, PROMPTS[:1], COMPLETIONS[:1])
    assert text.endswith("Hello there<|im_end|>\n")
    variants = [text, text.removesuffix("\n"), text.removesuffix("<|im_end|>\n")]
    expected = [scores[0] for scores in by_transformers(folder, variants)]
    found = [
        judged(f"model:{folder}", PROMPTS[:1], COMPLETIONS[:1])[0],
        judged(f"model(path={folder}, ending=turn)", PROMPTS[:1], COMPLETIONS[:1], ended=[True])[0],
        judged(f"model:{folder}", PROMPTS[:1], COMPLETIONS[:1], ended=[False])[0],
    ]
    assert found == pytest.approx(expected, abs=1e-5) and len({round(value, 3) for value in expected}) == 3


def test_a_model_without_a_padding_token(tmp_path):
    folder = save_reward_model(tmp_path / "model", pad=None)
    expected = [scores[0] for scores in by_transformers(folder, chat_texts(folder))]
    assert judged(f"model:{folder}") == pytest.approx(expected, abs=1e-5)


def test_plain_text(tmp_path):
    folder = save_reward_model(tmp_path / "model", template=None)
    texts = [
        f"{prompt}{completion}<|im_end|>" for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    expected = [scores[0] for scores in by_transformers(folder, texts)]
    assert judged(f"model:{folder}") == pytest.approx(expected, abs=1e-5)


def test_a_pair_of_texts(tmp_path):
    """An encoder with segments, as BERT's."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(None).backend_tokenizer,
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<unk>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    config = BertConfig(
        vocab_size=len(tokenizer), **model_sizes(), num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    draw(BertForSequenceClassification(config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, again = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    with torch.no_grad():
        pairs = [again(p, c, return_tensors="pt") for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
        assert all(pair["token_type_ids"].max() == 1 for pair in pairs)
        expected = [model(**pair).logits.item() for pair in pairs]
    assert judged(f"model:{tmp_path}") == pytest.approx(expected, abs=1e-5)


def test_an_output_of_a_regression_model_is_taken_as_it_is(tmp_path):
    names = {0: "helpfulness", 1: "correctness", 2: "verbosity"}
    folder = save_reward_model(tmp_path / "model", num_labels=3, id2label=names, problem_type="regression")
    raw = judged(f"model(path={folder}, label=correctness)")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "single_label_classification"}))
    likely = judged(f"model(path={folder}, label=correctness)")
    assert max(likely) < 0 and raw != pytest.approx(likely, abs=1e-3)
    assert all(one != pytest.approx(two, abs=1e-6) for one, two in zip(raw, likely, strict=True))


def test_one_of_several_labels(tmp_path):
    folder = save_reward_model(tmp_path / "model", num_labels=3, id2label={0: "bad", 1: "fine", 2: "good"})
    logits = torch.tensor(by_transformers(folder, chat_texts(folder)))
    expected = logits.log_softmax(-1)[:, 2].tolist()
    assert judged(f"model(path={folder}, label=good)") == pytest.approx(expected, abs=1e-5)
    assert judged(f"model(path={folder}, label=2)") == pytest.approx(expected, abs=1e-5)
    for setting, told in (("", "no label"), (", label=best", "label best")):
        with pytest.raises(
            ConfigError, match=f"several outputs; got {told}; expected one of bad, fine, good"
        ):
            resolve_reward(f"model(path={folder}{setting})")


def test_models_that_cannot_serve(folder, tiny_folder):
    with pytest.raises(ModelError, match=r"weights of .* are incomplete; got no score\.weight"):
        resolve_reward(f"model:{tiny_folder}")  # a causal model: its scalar head would be random
    with pytest.raises(ModelError, match="There is no model"):
        resolve_reward("model:/no/such")
    with pytest.raises(ConfigError, match="label has no effect on a reward model with one output"):
        resolve_reward(f"model(path={folder}, label=good)")
    with pytest.raises(ConfigError, match="has no separator"):
        resolve_reward(f"model(path={folder}, template=pair)")
    with pytest.raises(ConfigError, match="batch_size of reward 'model' is out of range"):
        resolve_reward(f"model(path={folder}, batch_size=0)")
    with pytest.raises(ConfigError, match="device nothing is not available"):
        resolve_reward(f"model(path={folder}, device=nothing)")


def test_a_text_that_is_too_long(folder):
    with pytest.raises(
        TrainingError, match=r"too long for reward 'model': completion 1, 'x x.*; expected at most 128"
    ):
        judged(f"model:{folder}", ["Hi", "Hi"], ["a", "x " * 200])
    with pytest.raises(TrainingError, match="expected at most 8"):
        judged(f"model(path={folder}, max_length=8)")


def test_a_dialogue_that_the_template_refuses(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refusing = "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    tokenizer.chat_template = refusing + CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    for more in ("", ", ending=turn"):
        with pytest.raises(TrainingError, match=r"completion 1, 'bad'.*no"):
            judged(f"model(path={tmp_path / 'model'}{more})", ["Hi", "Hi"], ["good", "bad"])


# Two causal models


@pytest.fixture(scope="module")
def tuned_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tuned", seed=5)


@torch.no_grad()
def by_hand(policy, reference, prompt, completion, ended=True):
    """(log-ratio, tokens): each sequence alone through both models, log-softmax, gather."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    start = tokenizer(head, add_special_tokens=False)["input_ids"]
    ids = torch.tensor(
        [tokenizer(head + completion + "<|im_end|>" * ended, add_special_tokens=False)["input_ids"]]
    )
    sums = []
    for name in (policy, reference):
        logp = AutoModelForCausalLM.from_pretrained(name).eval()(ids).logits[0].double().log_softmax(-1)
        sums.append(sum(logp[k - 1, ids[0, k]].item() for k in range(len(start), ids.shape[1])))
    return sums[0] - sums[1], ids.shape[1] - len(start)


def test_implicit_reward(tuned_folder, tiny_folder):
    ratios = [by_hand(tuned_folder, tiny_folder, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    pair = f"policy={tuned_folder}, reference={tiny_folder}"
    assert len({round(ratio, 2) for ratio, _ in ratios}) == 3
    assert judged(f"implicit({pair}, beta=0.5)") == pytest.approx(
        [0.5 * ratio for ratio, _ in ratios], abs=1e-4
    )
    mean = judged(f"implicit({pair}, beta=1, length=mean, length_penalty=0.01)")
    assert mean == pytest.approx([ratio / tokens - 0.01 * tokens for ratio, tokens in ratios], abs=1e-4)


def test_implicit_reward_of_a_dialogue_and_of_what_was_cut_off(tuned_folder, tiny_folder):
    spec = f"implicit(policy={tuned_folder}, reference={tiny_folder}, beta=1)"
    found = judged(
        spec, ["Hi"] * 3, ["Hello there"] * 3, prompt_turns=[TURNS, None, None], ended=[True, True, False]
    )
    expected = [
        by_hand(tuned_folder, tiny_folder, prompt, "Hello there", ended)[0]
        for prompt, ended in ((TURNS, True), ("Hi", True), ("Hi", False))
    ]
    assert found == pytest.approx(expected, abs=1e-4) and len({round(value, 2) for value in found}) == 3


def test_a_model_beside_itself_prefers_nothing(tiny_folder):
    assert judged(f"implicit(policy={tiny_folder}, reference={tiny_folder})") == [0.0, 0.0, 0.0]


@torch.no_grad()
@pytest.mark.parametrize("length", ["mean", "sum"])
def test_likelihood_is_that_of_the_model(tiny_folder, length):
    """Against transformers: the chat template, one sequence at a time, log-softmax in fp64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder).double()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        turns = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": completion}], tokenize=False
        ).rstrip("\n")
        before = tokenizer(start, add_special_tokens=False)["input_ids"]
        ids = torch.tensor(tokenizer(whole, add_special_tokens=False)["input_ids"])
        logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[len(before) - 1 :]
        expected.append(float(logps.mean() if length == "mean" else logps.sum()))
    found = resolve_reward(f"likelihood(model={tiny_folder}, length={length})")(
        prompts=PROMPTS, completions=COMPLETIONS
    )
    assert found == pytest.approx(expected, abs=1e-4)


def test_implicit_rewards_that_cannot_be(tiny_folder, folder):
    with pytest.raises(ConfigError, match="needs a setting; got no reference"):
        resolve_reward(f"implicit(policy={tiny_folder})")
    with pytest.raises(ConfigError, match="beta of reward 'implicit' is out of range"):
        resolve_reward(f"implicit(policy={tiny_folder}, reference={tiny_folder}, beta=0)")
    with pytest.raises(ModelError, match="There is no model"):
        resolve_reward(f"implicit(policy={tiny_folder}, reference=/no/such)")


def test_the_models_are_loaded_once(folder, monkeypatch):
    reward = resolve_reward(f"model:{folder}")
    monkeypatch.setattr("preftune.model.load_classifier.AutoModelForSequenceClassification", None)
    renderer = make_renderer(AutoTokenizer.from_pretrained(folder))
    assert renderer.mode == "chat" and len(ask(reward, "model", ["Hi"], ["a"], {}).rewards) == 1


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Of a town.", "parameters": {}}}]
WITH_TOOLS = "{% if tools %}{% for t in tools %}{{ t.function.name + ': ' + t.function.description }}{% endfor %}{% endif %}"


@pytest.mark.parametrize("ending", ["template", "turn"])
def test_a_reward_model_reads_the_tools_that_its_template_writes(ending, tmp_path):
    folder = save_reward_model(tmp_path / "model", WITH_TOOLS + CHATML)
    spec = f"model(path='{folder}', ending='{ending}')"
    prompts, completions = ["Hi", "Hi"], ["Hello there", "Hello there"]
    with_tools, without = judged(spec, prompts, completions, tools=[TOOLS, None])
    end = "\n" * (ending == "template")
    text = (
        "weather: Of a town.<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there<|im_end|>"
        + end
    )
    plain = text.removeprefix("weather: Of a town.")
    expected = [rewards[0] for rewards in by_transformers(folder, [text, plain])]
    assert [with_tools, without] == pytest.approx(expected, abs=1e-5)
    assert with_tools != pytest.approx(without, abs=1e-3)


def test_the_log_ratio_of_two_models_reads_the_tools(tmp_path):
    for seed, name in enumerate(("policy", "reference")):
        save_tiny_model(tmp_path / name, seed)
        byte_tokenizer(WITH_TOOLS + CHATML, eos="<|im_end|>").save_pretrained(tmp_path / name)
    spec = f"implicit(policy='{tmp_path / 'policy'}', reference='{tmp_path / 'reference'}')"
    prompts, completions = ["Hi", "Hi"], ["Hello there", "Hello there"]
    with_tools, without = judged(spec, prompts, completions, tools=[TOOLS, None])
    said = judged(spec, ["Hi"], ["Hello there"])
    assert without == pytest.approx(said[0], abs=1e-5)
    assert with_tools != pytest.approx(without, abs=1e-3)


def test_a_template_without_tools_gets_none(folder):
    spec = f"model(path='{folder}')"
    assert judged(spec, ["Hi"], ["Hello"], tools=[TOOLS]) == judged(spec, ["Hi"], ["Hello"])
