"""Classifiers of several kinds as rewards and as starts: decoders, encoders, adapters. The truth is plain
transformers and peft.
"""

import peft
import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from preftune.errors import ConfigError, ModelError
from preftune.model.adapters import quiet_peft
from preftune.model.load import LoadOptions
from preftune.model.load_classifier import is_classifier, load_classification_model, load_reward_start
from preftune.rewards import call_reward, resolve_reward
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.models import model_sizes

PROMPTS = ["Hi", "Hi", "What is the capital of France?"]
COMPLETIONS = ["Hello there", "No.", "The capital of France is Paris, I think."]


def draw(model, std=0.3):
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * std)
    return model.eval()


def pair_tokenizer() -> PreTrainedTokenizerFast:
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
    return tokenizer


def encoder(kind: str, folder, **more) -> None:
    tokenizer = pair_tokenizer()
    sizes = {k: v for k, v in model_sizes().items() if k != "num_key_value_heads"}
    pad = tokenizer.pad_token_id
    common = dict(vocab_size=len(tokenizer), **sizes, pad_token_id=pad, **more)
    config = {
        "bert": lambda: BertConfig(**common),
        "deberta": lambda: DebertaV2Config(
            **common, type_vocab_size=2, relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
        "modernbert": lambda: ModernBertConfig(**common, classifier_pooling="mean"),
        "roberta": lambda: RobertaConfig(**common, type_vocab_size=1),
    }[kind]()
    if kind in ("modernbert", "roberta"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    draw(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judged(spec: str) -> list[float | None]:
    return call_reward(resolve_reward(spec), "model", list(PROMPTS), list(COMPLETIONS), {})


@torch.no_grad()
def pair_logits(folder) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [tokenizer(p, c, return_tensors="pt") for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    return torch.cat([model(**pair).logits for pair in pairs])


@pytest.mark.parametrize("kind", ["bert", "deberta", "modernbert", "roberta"])
def test_encoders_with_one_head_and_with_named_heads(kind, tmp_path):
    encoder(kind, tmp_path / "one", num_labels=1)
    assert judged(f"model:{tmp_path / 'one'}") == pytest.approx(
        pair_logits(tmp_path / "one")[:, 0].tolist(), abs=1e-5
    )
    names = {0: "helpful", 1: "honest", 2: "brief"}
    encoder(kind, tmp_path / "many", id2label=names, problem_type="regression")
    logits = pair_logits(tmp_path / "many")
    for number, name in names.items():
        found = judged(f"model(path={tmp_path / 'many'}, label={name})")
        assert found == pytest.approx(logits[:, number].tolist(), abs=1e-5)
    with pytest.raises(ModelError, match="reads a text in both directions"):
        load_reward_start(str(tmp_path / "one"), LoadOptions(), torch.float32)


def test_values_of_a_head(tmp_path):
    """The configuration decides, unless the user does."""
    encoder("bert", tmp_path, id2label={0: "bad", 1: "good"})
    logits = pair_logits(tmp_path)
    for values, expected in (
        ("raw", logits),
        ("auto", logits.log_softmax(-1)),
        ("log_prob", logits.log_softmax(-1)),
    ):
        found = judged(f"model(path={tmp_path}, label=good, values={values})")
        assert found == pytest.approx(expected[:, 1].tolist(), abs=1e-5)
    encoder("bert", tmp_path / "one", num_labels=1)
    with pytest.raises(ConfigError, match="values has no effect on a reward model with one output"):
        resolve_reward(f"model(path={tmp_path / 'one'}, values=raw)")


def causal_folder(folder):
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    config = LlamaConfig(vocab_size=len(tokenizer), **model_sizes(), head_dim=8, pad_token_id=0)
    draw(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_adapter_with_its_head(outputs, tmp_path):
    """As peft saves a reward model: the base is a language model, the adapter holds the head."""
    causal_folder(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=outputs, problem_type="regression"
    )
    with quiet_peft():
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
        )
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    ids = torch.arange(5, 25)[None]
    assert is_classifier(str(tmp_path / "adapter"), LoadOptions())
    merged = load_classification_model(str(tmp_path / "adapter"), LoadOptions())
    with torch.no_grad():
        wanted = wrapped(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
    assert wanted.shape == (1, outputs)
    if outputs == 1:
        started, head = load_reward_start(str(tmp_path / "adapter"), LoadOptions(), torch.float32)
        with torch.no_grad():
            states = started.model(input_ids=ids).last_hidden_state[:, -1]
            torch.testing.assert_close(states @ head.T, wanted, atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(ModelError, match="a head of 3 outputs"):
            load_reward_start(str(tmp_path / "adapter"), LoadOptions(), torch.float32)


def test_other_adapters_are_refused(tmp_path):
    causal_folder(tmp_path / "base")
    with quiet_peft():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is an adapter of a language model; got task_type CAUSAL_LM"):
        load_classification_model(str(tmp_path / "adapter"), LoadOptions())
