import base64
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from preftune.errors import ConfigError, StorageError
from preftune.report import read_run, write_comparison, write_report
from preftune.report.page import (
    MAX_CHARACTERS,
    NUM_FOLDED,
    NUM_SHOWN,
    clean,
    distinct_names,
    run_page,
    split_sample_rows,
)
from preftune.report.summary import (
    changes,
    describe_reward_change,
    describe_variety,
    objective_text,
    settings_that_differ,
    what_was_done,
)
from preftune.stats import Interval
from preftune.text import describe, interval_text, mean_text, value_text

from .runs import HOSTILE, HOSTILE_NAME, PROMPTS, build_run, sample, spoil, write_lines

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails where tags do not nest."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "li", "p"):
            self.text += "\n"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture
def folder(tmp_path):
    return build_run(tmp_path / "my run", steps=16, num_prompts=3)


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_of_a_finished_run(folder):
    page = page_of(folder)
    text = " ".join(page.text.split())
    assert (
        "smollm2-135m-instruct was trained with bnf on preferences.jsonl: 16 steps, 0.5 epochs, 23,200 tok"
        in text
    )
    assert "parameters 134,515,008" in text
    for words in (
        "The mean reward rose",
        "Log-ratios",
        "Other metrics",
        "256 records read",
        "seed: 0",
        "9346766",
    ):
        assert words in text
    assert f"preftune sample --model '{folder}/final' --prompt" in text
    assert f"vllm serve '{folder}/final'" in text
    assert f"preftune export '{folder}' --to gguf --output gguf" in text
    assert page.tags.count("svg") == 7 + 4 + 1
    assert len({value for name, value in page.attributes if name == "id"}) == sum(
        n == "id" for n, _ in page.attributes
    )


def test_the_page_loads_nothing_and_forbids_all_scripts_but_its_own(folder):
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    policies = [
        value for name, value in page.attributes if name == "content" and value.startswith("default-src")
    ]
    assert len(policies) == 1
    script = html.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policies[0].startswith(
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    )
    assert page.tags.count("script") == 1
    assert not {"img", "iframe", "object"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value.startswith(("#", "data:")) for value in sources)
    assert "@import" not in html and "url(http" not in html


def test_the_same_files_give_the_same_bytes(folder):
    assert run_page(read_run(folder)) == run_page(read_run(folder))


def test_text_from_outside_is_text(folder):
    run = spoil(folder)
    for page in (page_of(run), Page(write_comparison([run], run / "cmp.html").read_text(encoding="utf-8"))):
        assert page.tags.count("script") == 1
        assert not any(name.startswith("on") for name, _ in page.attributes)
        assert HOSTILE in page.text
        assert HOSTILE_NAME in page.text
        assert page.tags.count("style") == 1 and page.tags.count("title") == 1


def test_control_characters_and_surrogates_are_removed(folder):
    text = "a\x00b\x1bc\x7fd\x85e\udc80f\u202eg\ufffeh\ttab\nline é 日本 🙂"
    assert clean(text) == "abcde\ufffdfgh\ttab\nline é 日本 🙂"
    rows = [sample("after", 0, 1.0, completion=text, prompt="p\x08\ud800q")]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(folder).read_bytes().decode("utf-8")
    assert "line é 日本 🙂" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)


def test_reward_before_and_after_over_the_prompts_that_have_both(folder):
    rows = [
        sample("before", 0, 0.0),
        sample("before", 0, 1.0, 1),
        sample("after", 0, 2.0),
        sample("before", 1, 3.0),
        sample("after", 1, 4.5),
        sample("before", 2, 100.0),
        sample("after", 3, None),
    ]
    write_lines(folder / "samples.jsonl", rows)
    reward, ended, length, repetitive = changes(read_run(folder).samples)
    assert (reward.before.mean, reward.after.mean, reward.difference.mean) == (1.75, 3.25, 1.5)
    assert reward.difference.num == 2
    # both differences are 1.5, so there is no spread and zero is excluded
    assert describe_reward_change(reward).endswith("(95% interval +1.5 to +1.5). The interval excludes zero.")
    assert (ended.name, ended.before.mean, length.after.mean) == ("Completed", 100.0, 10.0)
    assert (repetitive.name, repetitive.before.mean) == ("Repetitive", 0.0)


def test_repetitive_samples_and_distinct_word_pairs(folder):
    texts = {"before": ["one two three", "four five"], "after": ["a b c d " * 3, "a b"]}
    rows = [
        sample(stage, index, 0.0) | {"completion": text}
        for stage, found in texts.items()
        for index, text in enumerate(found)
    ]
    write_lines(folder / "samples.jsonl", rows)
    samples = read_run(folder).samples
    repetitive = changes(samples)[-1]
    assert (repetitive.before.mean, repetitive.after.mean) == (0.0, 50.0)
    # after: ab, bc, cd and da of 11 pairs of the one text and 1 of the other
    assert describe_variety(samples).endswith("of a stage): 1.00 before, 0.333 after.")
    write_report(folder)
    assert describe_variety(samples) in (folder / "report.md").read_text(encoding="utf-8")


def test_the_verdict_claims_no_more_than_the_interval(folder):
    def said(before, after):
        rows = [sample("before", i, r) for i, r in enumerate(before)]
        rows += [sample("after", i, r) for i, r in enumerate(after)]
        write_lines(folder / "samples.jsonl", rows)
        (reward, *_) = changes(read_run(folder).samples)
        return describe_reward_change(reward)

    assert "includes zero: these samples do not show" in said([0, 0, 0], [1, -1, 0.5])
    assert "fell" in said([3, 4, 5], [1, 2, 3.1]) and "excludes zero" in said([3, 4, 5], [1, 2, 3.1])
    assert "One prompt gives no interval" in said([0], [1])
    assert "stayed the same" in said([1, 2], [1, 2])
    assert "no samples after training" in said([1, 2], [])
    assert "no samples before training" in said([], [1, 2])


def test_samples_stand_in_the_order_of_prompts_not_of_rewards(folder):
    rows = [
        sample(stage, prompt, -prompt if stage == "after" else 0.0, index)
        for prompt in reversed(range(20))
        for index in (1, 0)
        for stage in ("after", "before")
    ]
    write_lines(folder / "samples.jsonl", rows)
    shown, folded = split_sample_rows(read_run(folder).samples)
    assert [row.label for row in shown] == [f"prompt {n}, sample 1" for n in range(1, NUM_SHOWN + 1)]
    assert shown[3].before.completion == "before 3 0" and shown[3].after.completion == "after 3 0"
    assert [row.label for row in folded][:2] == ["prompt 1, sample 2", "prompt 2, sample 2"]
    assert len(shown) + len(folded) == 40
    text = page_of(folder).text
    assert text.index("after 11 0") < text.index("All other samples (28)") < text.index("after 0 1")


def test_long_and_many_samples_are_cut_and_the_page_says_so(folder):
    many = NUM_SHOWN + NUM_FOLDED + 7
    rows = [
        sample("after", i, 1.0, completion="x" * (MAX_CHARACTERS + 5) if i == 0 else "y") for i in range(many)
    ]
    write_lines(folder / "samples.jsonl", rows)
    text = page_of(folder).text
    assert "(5 more characters in samples.jsonl)" in text
    assert f"All other samples ({NUM_FOLDED + 7})" in text
    assert "7 more are in samples.jsonl." in " ".join(text.split())
    assert "not sampled" in text


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_that_did_not_finish_says_so(folder, state):
    (folder / "status.json").write_text(json.dumps({"state": state, "message": "loss is nan"}))
    text = page_of(folder).text
    assert {
        "running": "still running, or it was killed",
        "interrupted": "interrupted: loss is nan",
        "failed": "stopped by an error: loss is nan",
    }[state] in text


def test_a_run_with_nothing_yet_still_has_a_page(tmp_path):
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: m\nobjective: dpo\n")
    page = page_of(folder)
    assert "m was trained with dpo: 0 steps." in page.text
    assert "No metrics have been logged yet." in page.text
    assert "preftune sample" not in page.text
    assert "svg" not in page.tags


def test_what_could_not_be_read_is_on_the_page(folder):
    path = folder / "metrics.jsonl"
    path.write_text("broken\n" + path.read_text())
    assert "metrics.jsonl: line 1 is not a JSON object and was skipped." in page_of(folder).text


def test_the_page_is_replaced_whole_or_not_at_all(folder, monkeypatch):
    path = write_report(folder)
    before = path.read_bytes()

    def refuse(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StorageError, match="No space left"):
            write_report(folder)
    assert path.read_bytes() == before
    assert not list(folder.glob(".report.html*"))


def test_a_comparison(tmp_path):
    runs = [
        build_run(tmp_path / "a" / "run", steps=16, num_prompts=3),
        build_run(
            tmp_path / "b" / "run", steps=8, num_prompts=3, seed=1, objective={"name": "dpo", "beta": 0.1}
        ),
    ]
    output = write_comparison(runs, tmp_path / "out" / "compare.html")
    page = Page(output.read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for words in (
        "a/run finished 16",
        "b/run finished 8",
        "objective.beta – 0.1",
        "seed 0 1",
        "different scales",
    ):
        assert words in text
    assert re.search(
        r"completed, % .* 0\.\d+ → 0\.\d+ \+0\.\d+ \(", text
    )  # the mean reward and its difference
    assert "learning_rate" not in text.split("Final metrics")[0]
    assert page.tags.count("svg") == 7 + 4
    assert "different scales" not in write_comparison(runs[:1], output).read_text(encoding="utf-8")


def test_comparisons_that_cannot_be_made(folder, tmp_path):
    with pytest.raises(ConfigError, match="1 to 8"):
        write_comparison([], tmp_path / "c.html")
    with pytest.raises(ConfigError, match="1 to 8"):
        write_comparison([tmp_path / str(i) for i in range(9)], tmp_path / "c.html")
    with pytest.raises(ConfigError, match="twice"):
        write_comparison([folder, folder / ".." / folder.name], tmp_path / "c.html")
    with pytest.raises(ConfigError, match="is a file"):
        write_comparison([folder], tmp_path)
    with pytest.raises(ConfigError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_names_that_tell_runs_apart(tmp_path):
    assert distinct_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert distinct_names([tmp_path / "x" / "r", tmp_path / "y" / "r"]) == ["x/r", "y/r"]


def test_settings_that_differ_are_found_at_any_depth(folder):
    run = read_run(folder)
    other = dataclasses.replace(
        run, config={**run.config, "objective": {"name": "bnf", "deep": {"er": [1, 2.5]}}}
    )
    assert settings_that_differ([run, other]) == {"objective.deep.er": ["–", "1, 2.5"]}


def test_numbers_and_settings_as_words():
    assert [value_text(v) for v in (0.0, -0.5, 1.2345, 12345.6, 2e-6, float("nan"))] == [
        "0",
        "−0.500",
        "1.23",
        "12,346",
        "2.00e−06",
        "not finite",
    ]
    interval = Interval(mean=0.2941, low=0.2012, high=0.387, num=9)
    assert interval_text(interval, signed=True) == "+0.294 (+0.201 to +0.387)"
    assert mean_text(Interval(mean=-0.0004, low=-1.0, high=1.0, num=3), signed=True) == "0.0"
    one = Interval(mean=2.0, low=float("-inf"), high=float("inf"), num=1)
    assert interval_text(one) == "2.0 (one prompt, no interval)"
    assert describe({"path": "d.jsonl", "split": "x"}) == "d.jsonl"
    assert describe({"rank": 8, "alpha": None, "lr": 1e-5}) == "rank 8, lr 1e-05"
    assert objective_text({"name": "dpo", "beta": 0.1, "label_smoothing": None}) == "dpo (beta 0.1)"


def test_singular_and_plural(folder):
    write_lines(folder / "metrics.jsonl", [{"step": 1, "phase": "train", "epoch": 1, "num_tokens": 1}])
    assert what_was_done(read_run(folder)).endswith(": 1 step, 1 epoch, 1 token.")


def test_the_report_imports_no_torch():
    heavy = {"torch", "transformers", "matplotlib.pyplot"}
    code = f"import sys, preftune.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_prompts_of_the_builder_reach_the_page(folder):
    text = page_of(folder).text
    assert all(prompt in text for prompt in PROMPTS[:3])
