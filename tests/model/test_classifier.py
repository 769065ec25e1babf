"""A reward model is a plain sequence classifier: transformers alone gives the scores that training saw."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config

from preftune.data.render import make_renderer
from preftune.errors import ModelError
from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.classifier import PAD, check_classifier, reward_tokenizer, save_reward_model
from preftune.model.layout import LayoutOptions, collate
from preftune.model.load import LoadOptions, load_model
from preftune.model.policy import Policy, score
from preftune.types import Record
from tests.data.tokenizers_for_tests import (
    CHATML,
    GEMMA,
    LLAMA3,
    MISTRAL,
    NO_END,
    byte_tokenizer,
    word_tokenizer,
)
from tests.models import CONFIGS, model_sizes, tiny_model

FAMILIES = {
    **CONFIGS,
    "qwen2": lambda: Qwen2Config(**model_sizes(), tie_word_embeddings=True, max_position_embeddings=256),
}
WITHOUT = {"granite"}  # transformers has no sequence classifier of it
RECORDS = [
    Record(
        prompt="What is the sea?",
        completions=("Wide and blue.", "No", "I am fine, thank you, and how are you today"),
        ended=(True, True, False),
    ),
    Record(prompt="Hi", completions=("Hello there!", "?")),
]


def model_of(family: str, vocabulary: int):
    config = FAMILIES[family]()
    config.vocab_size = vocabulary
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if family == "gemma2" else "sdpa"
    ).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return model


def policy_of(model, **known) -> Policy:
    head = torch.nn.Linear(32, 1, bias=False)
    torch.nn.init.normal_(head.weight, std=0.5, generator=torch.Generator().manual_seed(2))
    return Policy(
        model=model, precision="fp32", sharing="shared", sharing_reason="", value_head=head, **known
    )


@torch.no_grad()
def training_scores(policy: Policy, groups) -> list[float]:
    batch = collate(groups, LayoutOptions(), "shared", read_last=True)
    found = score(policy, batch, frozenset({"value_after"}))
    return found.value_after[found.lengths.cumsum(0) - 1].tolist()


@torch.no_grad()
def plain_scores(folder, groups, side: str, attention: str | None = None) -> list[float]:
    """transformers and nothing of ours: the tokenizer pads, the classifier scores the whole batch at once."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=attention).eval()
    rows = [
        {"input_ids": np.concatenate([group.prompt, ids]).tolist()}
        for group in groups
        for ids in group.completions
    ]
    batch = tokenizer.pad(rows, return_tensors="pt")
    assert batch["input_ids"].shape[0] == 5 and model.config.num_labels == 1
    assert (batch["attention_mask"] == 0).any()
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions).logits[:, 0].tolist()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WITHOUT])
def test_plain_transformers_gives_the_same_scores(family, tmp_path):
    renderer = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"))
    policy = policy_of(model_of(family, len(renderer.tokenizer)))
    groups = [renderer.render(record) for record in RECORDS]
    check_classifier(policy.model)
    expected = training_scores(policy, groups)
    assert np.std(expected) > 0.05
    save_reward_model(policy, renderer, tmp_path / "reward")
    attention = "eager" if family == "gemma2" else None  # SDPA leaves out its soft cap
    for side in ("right", "left"):
        assert plain_scores(tmp_path / "reward", groups, side, attention) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged(dtype, tmp_path):
    """Also over a frozen bf16 base, whose rounding must not swallow the update."""
    renderer = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"))
    model_of("llama", len(renderer.tokenizer)).save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), LoadOptions(), dtype)
    wrapped = inject_lora(model, LoraOptions(rank=2))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    policy = policy_of(model, peft_model=wrapped)
    groups = [renderer.render(record) for record in RECORDS]
    before = training_scores(policy, groups)
    exact = copy.deepcopy(wrapped).float()
    expected = training_scores(replace(policy, model=exact.get_base_model(), peft_model=exact), groups)
    save_reward_model(policy, renderer, tmp_path / "reward")
    assert plain_scores(tmp_path / "reward", groups, "right") == pytest.approx(expected, abs=1e-5)
    assert before == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 0.1)


def test_an_architecture_without_a_classifier_is_refused():
    with pytest.raises(
        ModelError,
        match=r"GraniteForCausalLM cannot become a reward model .* no sequence classification class",
    ):
        check_classifier(tiny_model("granite"))


def test_a_classifier_that_reads_its_head_elsewhere_is_refused(monkeypatch):
    """As one whose pooling counts from the left."""
    from transformers import LlamaForSequenceClassification

    plain = LlamaForSequenceClassification.forward

    def first(self, input_ids, attention_mask, **rest):
        return plain(self, input_ids=input_ids[:, :1], attention_mask=attention_mask[:, :1], **rest)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", first)
    with pytest.raises(ModelError, match=r"whose score is .* where the head gives"):
        check_classifier(tiny_model("llama"))


def test_a_reward_model_is_no_policy(tmp_path):
    renderer = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"))
    save_reward_model(policy_of(model_of("qwen2", len(renderer.tokenizer))), renderer, tmp_path / "reward")
    with pytest.raises(ModelError, match="is a classifier or a reward model and cannot write text"):
        load_model(str(tmp_path / "reward"), LoadOptions())


# --- the tokenizer ---


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        (lambda: byte_tokenizer(CHATML, eos="<|im_end|>"), "trimmed"),
        (lambda: byte_tokenizer(CHATML), "trimmed"),
        (lambda: byte_tokenizer(LLAMA3, eos="<|eot_id|>"), "same"),
        (lambda: byte_tokenizer(GEMMA, eos="<end_of_turn>"), "trimmed"),
        (lambda: byte_tokenizer(MISTRAL), "same"),
        (lambda: byte_tokenizer(NO_END), "trimmed"),
        (lambda: word_tokenizer(CHATML, eos="<|im_end|>"), "trimmed"),
    ],
)
def test_padding_and_template(tokenizer, template):
    """Padding is no token that ends a completion; the template ends with the completion's last token."""
    renderer = make_renderer(tokenizer())
    made = reward_tokenizer(renderer)
    assert made.pad_token_id not in (None, renderer.end_of_turn, made.eos_token_id)
    assert renderer.tokenizer.pad_token is None  # the run's own is left alone
    assert (made.chat_template != renderer.tokenizer.chat_template) == (template == "trimmed")
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "fine, thank you"}]
    group = renderer.render(Record(prompt="Hello there", completions=("fine, thank you",)))
    prompt = made.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert prompt == group.prompt.tolist()
    whole = made.apply_chat_template(turns)["input_ids"]
    assert whole[-1] == group.completions[0][-1] == renderer.end_of_turn
    assert renderer.decode(whole) == renderer.decode(
        [*prompt, *group.completions[0].tolist()]
    )  # tokens may merge between them


def test_padding_that_is_the_end_of_turn_is_replaced():
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    tokenizer.pad_token = "<|im_end|>"
    assert reward_tokenizer(make_renderer(tokenizer)).pad_token == "<unk>"
    tokenizer.pad_token = "<s>"
    assert reward_tokenizer(make_renderer(tokenizer)).pad_token == "<s>"


def test_without_a_token_to_spare_one_is_added(tmp_path):
    """As with GPT-2, whose only special token is its end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: k for k, word in enumerate(["<|endoftext|>", "a", "b", "c", "w"])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="w"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    renderer = make_renderer(PreTrainedTokenizerFast(tokenizer_object=tokens, **ends))
    policy = policy_of(model_of("gpt2", len(words)))
    texts, ended = (" a", " b c a", " c a", " w b", " c"), (True, True, False, True, True)
    groups = [renderer.render(Record(prompt="a b", completions=texts, ended=ended))]
    expected = training_scores(policy, groups)
    save_reward_model(policy, renderer, tmp_path / "reward")
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").pad_token == PAD
    assert plain_scores(tmp_path / "reward", groups, "right") == pytest.approx(expected, abs=1e-5)
