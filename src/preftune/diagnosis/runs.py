"""What finished runs did to their model, measured on the same held-out pairs: models in, plain numbers out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from preftune.data.inspect import token_pieces
from preftune.data.render import Renderer
from preftune.diagnosis.run_material import DiagnoseRunConfig, Material, Run, find_material, find_runs
from preftune.measures import displacement, shifts
from preftune.measures.ches import Ches
from preftune.measures.probe import TokenProbe, ches_scores, probe_groups
from preftune.measures.shifts import TokenShifts
from preftune.model.policy import Policy
from preftune.model.scorer import load_scorer
from preftune.objectives import objective_name
from preftune.progress import Reporter
from preftune.report.diagnosis import SIDES
from preftune.sampling.sample import SampleOptions, sample
from preftune.sampling.sampled import sampled_group
from preftune.stats import (
    cluster_means,
    json_numbers,
    mean_interval,
    paired_interval,
    preferred_share,
    share_interval,
)
from preftune.train.token_table import scored_ids, token_row
from preftune.types import Group

COMPARED = (
    "abs_mean_log_ratio",
    "mean_logit_shift",
    "mean_centred_logit_shift",
    "gini",
    "gini_centred",
    "mean_greedy_log_ratio",
)
"""The quantities of which runs are compared with the first one, pair by pair."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchor:
    """A reference with all that is known of it before a run is looked at."""

    policy: Policy
    probes: list[list[TokenProbe]]
    ches: list[Ches]  # of each pair
    samples: list[Group]
    sample_probes: list[list[TokenProbe]]


def diagnose_runs(settings: DiagnoseRunConfig, report: Reporter) -> tuple[dict, list[dict]]:
    """(what diagnosis.json holds, the rows of tokens.jsonl)."""
    runs = find_runs(settings.runs)
    material = find_material(settings, runs)
    report.note(
        f"{len(material.clusters)} held-out pairs of {len(material.groups)} prompts from {material.source}"
    )
    kinds = [
        [_kinds(group, k, material.renderer) for k in range(len(group.completions))]
        for group in material.groups
    ]
    moved: list[list[list[TokenShifts]]] = [[] for _ in runs]
    numbers: list[dict] = [{} for _ in runs]
    for reference in dict.fromkeys(run.reference for run in runs):  # one reference is held at a time
        anchor = _anchor(settings, reference, material, report)
        for index, run in enumerate(runs):
            if run.reference == reference:
                policy = _load(settings, run.final)
                probes = probe_groups(
                    policy,
                    material.groups,
                    settings.layout,
                    _told(report, f"score {run.name}"),
                    anchor.probes,
                )
                moved[index] = _moved(probes, anchor.probes)
                numbers[index] = _of_run(run, material, moved[index], kinds, anchor)
                numbers[index]["samples"] = _of_samples(settings, run, policy, anchor, material, report)
    edges = shifts.symmetric_edges(
        np.concatenate([one.log_ratio for run in moved for row in run for one in row])
    )
    for found, run in zip(numbers, moved, strict=True):
        for side, name in enumerate(SIDES):
            values = np.concatenate([one.log_ratio for one in material.of_side(side, run)])
            found["sides"][name]["histogram"] = shifts.histogram(values, edges).tolist()
    content = {
        "data": material.source,
        "num_prompts": len(material.groups),
        "num_pairs": len(material.clusters),
        "quantities": shifts.QUANTITIES,
        "edges": edges.tolist(),
        "samples": settings.samples,
        "max_new_tokens": settings.max_new_tokens,
        "precision": settings.precision,
        "seed": settings.seed,
        "runs": numbers,
        "differences": _differences(runs, material, moved),
    }
    return json_numbers(content), _token_rows(runs, material, moved, settings.examples)


def _load(settings: DiagnoseRunConfig, name: str) -> Policy:
    return load_scorer(name, settings.loading, settings.layout, settings.precision, settings.device)


def _told(report: Reporter, phase: str) -> Callable[[int, int], None]:
    return lambda done, of: report.update(phase, done, of)


def _anchor(settings: DiagnoseRunConfig, name: str, material: Material, report: Reporter) -> Anchor:
    policy, groups, layout = _load(settings, name), material.groups, settings.layout
    probes = probe_groups(policy, groups, layout, _told(report, "score the reference"))
    ches = ches_scores(policy, groups, [group.pairs for group in groups], layout, _told(report, "ches"))
    samples = _draw(settings, policy, material, "sample the reference", report)
    return Anchor(
        policy=policy,
        probes=probes,
        ches=[one for row in ches for one in row],
        samples=samples,
        sample_probes=probe_groups(policy, samples, layout, _told(report, "score its samples"))
        if samples
        else [],
    )


def _draw(
    settings: DiagnoseRunConfig, policy: Policy, material: Material, phase: str, report: Reporter
) -> list[Group]:
    """Samples of the prompts, from the model as it is; the same noise for every model."""
    if not settings.samples:
        return []
    options = SampleOptions(num_completions=settings.samples, max_new_tokens=settings.max_new_tokens)
    prompts = [group.prompt for group in material.groups]
    drawn = sample(policy.model, material.renderer, prompts, options, settings.seed, _told(report, phase))
    return [sampled_group(prompt, ones) for prompt, ones in zip(prompts, drawn, strict=True)]


def _moved(
    policy: Sequence[Sequence[TokenProbe]], reference: Sequence[Sequence[TokenProbe]]
) -> list[list[TokenShifts]]:
    return [
        [
            TokenShifts(
                logp=a.logp,
                ref_logp=b.logp,
                logit_shift=a.logit - b.logit,
                centred_logit_shift=(a.logit - a.mean_logit) - (b.logit - b.mean_logit),
                greedy_log_ratio=a.greedy_logp - b.greedy_logp,
            )
            for a, b in zip(one, two, strict=True)
        ]
        for one, two in zip(policy, reference, strict=True)
    ]


def _kinds(group: Group, k: int, renderer: Renderer) -> list[str]:
    ids = scored_ids(group, k)
    ends = ids == renderer.end_of_turn
    pieces = token_pieces(ids, renderer)
    return [displacement.token_kind(text, place, bool(ends[place])) for place, text in enumerate(pieces)]


def _classes(moved: Sequence[TokenShifts], kinds: Sequence[Sequence[str]], clusters: Sequence[int]) -> dict:
    """The log-ratios of some completions, by kind of token and by how likely the reference found it."""
    ratios = [one.log_ratio for one in moved]
    expected = [displacement.token_expectations(one.ref_logp) for one in moved]
    return {
        "kinds": displacement.by_class(ratios, kinds, displacement.TOKEN_KINDS, clusters),
        "expectations": displacement.by_class(ratios, expected, displacement.EXPECTATIONS, clusters),
    }


def _of_run(
    run: Run, material: Material, moved: list[list[TokenShifts]], kinds: list[list[list[str]]], anchor: Anchor
) -> dict:
    """Everything but samples and histograms."""
    clusters, sides, rows = material.clusters, {}, {}
    for side, name in enumerate(SIDES):
        ones = material.of_side(side, moved)
        rows[name] = [shifts.completion_shifts(one) for one in ones]
        sides[name] = {
            "intervals": shifts.summarize(rows[name], clusters),
            "pooled": shifts.pooled(ones),
            "points": [[row["mean_log_ratio"], row["mean_logit_shift"]] for row in rows[name]],
            **_classes(ones, material.of_side(side, kinds), clusters),
        }
    up, down = ([row["log_ratio"] for row in rows[name]] for name in SIDES)
    margins = np.array(up) - np.array(down)
    scores = {name: [getattr(one, name) for one in anchor.ches] for name in ("plain", "normalized")}
    return {
        "name": run.name,
        "folder": str(run.folder),
        "objective": objective_name(run.config.objective),
        "reference": run.reference,
        "sides": sides,
        "directions": displacement.directions(up, down, clusters),
        "margin": mean_interval(cluster_means(margins, clusters)),
        "accuracy": share_interval(cluster_means(preferred_share(margins), clusters)),
        "ches": {
            **{name: mean_interval(cluster_means(ones, clusters)) for name, ones in scores.items()},
            "rank_correlation": displacement.rank_correlation(
                scores["normalized"], up
            ),  # with the chosen log-ratio
        },
    }


def _of_samples(
    settings: DiagnoseRunConfig,
    run: Run,
    policy: Policy,
    anchor: Anchor,
    material: Material,
    report: Reporter,
) -> dict | None:
    """How much log-probability samples of the policy and of the reference gained, and by which tokens."""
    if not settings.samples:
        return None
    own = _draw(settings, policy, material, f"sample {run.name}", report)
    found = {}
    layout, told = settings.layout, _told(report, f"score samples, {run.name}")
    for name, groups, ref_probes in (
        ("policy", own, None),
        ("reference", anchor.samples, anchor.sample_probes),
    ):
        before = ref_probes if ref_probes is not None else probe_groups(anchor.policy, groups, layout, told)
        moved = [
            one for row in _moved(probe_groups(policy, groups, layout, told, before), before) for one in row
        ]
        clusters = [index for index, group in enumerate(groups) for _ in group.completions]
        kinds = [
            _kinds(group, k, material.renderer) for group in groups for k in range(len(group.completions))
        ]
        known = [frozenset(ids.tobytes() for ids in material.groups[index].completions) for index in clusters]
        found[name] = {
            "intervals": displacement.sample_shift([one.log_ratio for one in moved], clusters),
            "num_tokens": float(np.mean([len(one.logp) for one in moved])),
            "in_the_data": displacement.same_share(
                [ids.tobytes() for group in groups for ids in group.completions], known
            ),
            **_classes(moved, kinds, clusters),
        }
    return found


def _differences(
    runs: Sequence[Run], material: Material, moved: Sequence[list[list[TokenShifts]]]
) -> list[dict]:
    """Each other run minus the first one, pair by pair."""

    def values(run: list[list[TokenShifts]], side: int) -> dict[str, list[float]]:
        rows = [shifts.completion_shifts(one) for one in material.of_side(side, run)]
        return {name: [row[name] for row in rows] for name in COMPARED}

    first = [values(moved[0], side) for side in range(2)]
    found = []
    for run, one in zip(runs[1:], moved[1:], strict=True):
        mine = [values(one, side) for side in range(2)]
        found.append(
            {"run": run.name, "minus": runs[0].name}
            | {
                side: {
                    name: paired_interval(first[s][name], mine[s][name], material.clusters)
                    for name in COMPARED
                }
                for s, side in enumerate(SIDES)
            }
        )
    return found


def _token_rows(
    runs: Sequence[Run], material: Material, moved: Sequence[list[list[TokenShifts]]], count: int
) -> list[dict]:
    """One row per completion of the first pairs of each run, with its tokens."""
    pairs = [(index, pair) for index, group in enumerate(material.groups) for pair in group.pairs][:count]
    rows = []
    for run, shifted in zip(runs, moved, strict=True):
        for number, (index, pair) in enumerate(pairs):
            group = material.groups[index]
            for side, k in zip(SIDES, pair, strict=True):
                one = shifted[index][k]
                columns = {
                    name: getattr(one, name)
                    for name in ("logp", "ref_logp", "logit_shift", "centred_logit_shift")
                }
                rows.append(token_row(run.name, number, side, group, k, material.renderer, columns))
    return rows
