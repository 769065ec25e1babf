"""Trajectories from rows to numbers: only the assistant's tokens are scored, exactly, and the reference knows
which.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from preftune.data.render import make_renderer
from preftune.errors import StorageError
from preftune.model.layout import LayoutOptions, collate, split_micro_batches
from preftune.model.policy import Policy, score, score_groups
from preftune.model.reference import ReferenceStore, completion_keys, fill_store
from preftune.objectives.sft import SFT
from preftune.train.batches import mismatched_groups
from preftune.train.groups import learned_groups
from preftune.train.loop import train
from preftune.types import Group, Message, Record
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.folders import metric_rows, tiny_config, write_rows
from tests.models import CONFIGS, VOCAB, tiny_model


def masked_groups(seed: int = 0, num_groups: int = 3) -> list[Group]:
    """Random groups of three completions whose tokens are scored in stretches; one completion is scored
    whole.
    """
    random = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return random.integers(3, VOCAB, length).astype(np.int32)

    groups = []
    for _ in range(num_groups):
        masks = [np.repeat([True, False, True], random.integers(1, 5, 3)) for _ in range(2)] + [
            np.ones(4, dtype=bool)
        ]
        completions = tuple(ids(len(mask)) for mask in masks)
        groups.append(
            Group(prompt=ids(int(random.integers(1, 9))), completions=completions, scored=tuple(masks))
        )
    return groups


def plain(model, groups) -> list[list[torch.Tensor]]:
    """The definition: each sequence alone through the model, log-softmax, gathered at the assistant's tokens."""
    found = []
    for group in groups:
        found.append([])
        for completion, mask in zip(group.completions, group.scored, strict=True):
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            logp = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            places = np.flatnonzero(mask) + len(group.prompt)
            found[-1].append(logp[places - 1, ids[places]])
    return found


def policy_of(model, sharing) -> Policy:
    return Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sharing", ["shared", "packed", "single"])
def test_every_layout_scores_the_assistants_tokens_only(name, sharing):
    groups, model = masked_groups(), tiny_model(name)
    expected = torch.cat([one for group in plain(model, groups) for one in group])
    batch = collate(groups, LayoutOptions(micro_batch_tokens=120), sharing)
    got = score(policy_of(model, sharing), batch).logp
    assert batch.lengths.tolist() == [n for group in groups for n in group.num_scored] and len(got) == len(
        expected
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.detach().abs().max().item())


def test_a_rendered_trajectory_is_scored_at_the_answers():
    """By the tokens of each answer in the template's text, without the masks."""
    renderer = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"))
    answers, between = ("I am fine", "Paris."), "And you?"
    turns = [
        Message(role="assistant", content=answers[0]),
        Message(role="user", content=between),
        Message(role="assistant", content=answers[1]),
    ]
    group = renderer.render(Record(prompt="Hello", completions=(tuple(turns),)))
    folded = Group(
        prompt=group.prompt % VOCAB, completions=(group.completions[0] % VOCAB,), scored=group.scored
    )
    model = tiny_model()
    ids = torch.from_numpy(np.concatenate([folded.prompt, *folded.completions])).long()
    logp = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    pieces = [renderer.tokenizer(f"{text}<|im_end|>")["input_ids"] for text in answers]
    context = renderer.tokenizer(f"\n<|im_start|>user\n{between}<|im_end|>\n<|im_start|>assistant\n")[
        "input_ids"
    ]
    first = len(group.prompt)
    second = first + len(pieces[0]) + len(context)
    places = [*range(first, first + len(pieces[0])), *range(second, second + len(pieces[1]))]
    expected = torch.stack([logp[place - 1, ids[place]] for place in places])
    assert places[-1] == len(ids) - 1
    [[got]] = score_groups(policy_of(model, "shared"), [folded], LayoutOptions())
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)


def test_context_moves_what_follows_it_and_has_no_number_of_its_own():
    model, (group,) = tiny_model(), masked_groups(num_groups=1)
    place = int(np.flatnonzero(~group.scored[0])[0])
    changed = group.completions[0].copy()
    changed[place] = 3 + (changed[place] - 2) % (VOCAB - 3)
    other = Group(prompt=group.prompt, completions=(changed, *group.completions[1:]), scored=group.scored)
    policy = policy_of(model, "shared")
    [before], [after] = (score_groups(policy, [g], LayoutOptions()) for g in (group, other))
    start = int(group.scored[0][:place].sum())
    np.testing.assert_allclose(before[0][:start], after[0][:start], atol=1e-5)
    assert (np.abs(before[0][start:] - after[0][start:]) > 1e-4).all()
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)


# --- the reference's store ---


def test_keys_tell_masks_apart_and_know_those_of_before():
    group = masked_groups(num_groups=1)[0]
    bare = Group(prompt=group.prompt, completions=group.completions)
    keys, without = completion_keys(group), completion_keys(bare)
    assert keys[2] == without[2]  # all tokens scored: the same numbers
    assert keys[0] != without[0] and keys[1] != without[1]
    flipped = group.scored[0].copy()
    flipped[1] = ~flipped[1]
    assert (
        completion_keys(Group(prompt=group.prompt, completions=group.completions[:1], scored=(flipped,)))[0]
        != keys[0]
    )
    # Pinned: caches on disk are found by it.
    plain_group = Group(prompt=np.array([1, 2], dtype=np.int32), completions=(np.array([3], dtype=np.int32),))
    assert completion_keys(plain_group)[0].hex() == "e8bb30ac54acb7c86a38d00b1ea11000"


def test_a_mask_is_never_taken_for_tokens():
    """Four tokens and their mask are as many bytes as five tokens."""
    mask = np.array([True, True, False, True])
    four, five = (
        np.arange(4, dtype=np.int32),
        np.append(np.arange(4), int.from_bytes(mask.tobytes(), "little")),
    )
    prompt = np.array([1], dtype=np.int32)
    masked = Group(prompt=prompt, completions=(four,), scored=(mask,))
    assert completion_keys(masked) != completion_keys(
        Group(prompt=prompt, completions=(five.astype(np.int32),))
    )


def test_the_store_keeps_the_scored_tokens(tmp_path):
    groups, model = masked_groups(num_groups=3), tiny_model()
    store, policy = ReferenceStore(tmp_path), policy_of(model, "shared")
    assert fill_store(store, policy, groups, LayoutOptions(), lambda done, of: None) == 3
    again = ReferenceStore(tmp_path)
    for group, wanted in zip(groups, plain(model, groups), strict=True):
        got = again.get(group)
        assert tuple(map(len, got)) == group.num_scored
        for one, two in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, two.detach().numpy(), rtol=1e-4, atol=1e-4)
    first = completion_keys(groups[0])[0]
    again._found[first] = next(where for where in again._found.values() if where[2] != again._found[first][2])
    with pytest.raises(StorageError, match=f"tokens; expected {groups[0].num_scored[0]}"):
        again.get(groups[0])


def test_micro_batches_count_context_too():
    group = masked_groups(num_groups=1)[0]
    assert split_micro_batches(
        [group, group], LayoutOptions(micro_batch_tokens=len(group.prompt) + 5), "shared"
    ) == [[0], [1]]


def test_a_run_on_trajectories(tiny_folder, tmp_path):
    """The whole way: the loss starts at ln 2 with the cached reference, and falls."""
    rows = [
        {
            "prompt": f"Question {k}",
            "chosen": [
                {"role": "assistant", "content": "Look it up"},
                {"role": "tool", "content": f"Paris {k}"},
                {"role": "assistant", "content": f"It is {k}."},
            ],
            "rejected": [
                {"role": "assistant", "content": "No idea"},
                {"role": "user", "content": "Try"},
                {"role": "assistant", "content": "No."},
            ],
        }
        for k in range(8)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    result = train(
        tiny_config(tiny_folder, data, tmp_path / "run", optim={"learning_rate": 0.01}), quiet=True
    )
    losses = [row["loss"] for row in metric_rows(result.folder) if row["phase"] == "train"]
    assert losses[0] == pytest.approx(math.log(2.0), abs=1e-6) and losses[-1] < losses[0] - 0.01


def test_what_is_scored_follows_a_completion_everywhere():
    """Under the prompt of another group, and where completions of no use to an objective are left out."""
    one, other = (replace(group, labels=(-1, 1, -1)) for group in masked_groups(num_groups=2))
    (first, second) = mismatched_groups([one, other])
    assert (first.num_scored, second.num_scored) == (other.num_scored, one.num_scored)
    kept = learned_groups([one], SFT())[0]
    assert kept is not None and len(kept.completions) == 1
    assert np.array_equal(kept.completions[0], one.completions[1]) and np.array_equal(
        kept.scored[0], one.scored[1]
    )
    assert kept.labels == (1,) and kept.num_scored != (len(one.completions[1]),)
