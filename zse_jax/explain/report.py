"""The HTML report of an evaluation: one self-contained file.

It shows metrics with intervals, classes, the best, typical and worst queries with explanations, the
most confused classes, training curves, and facts about the run. `report_parts` computes its parts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from markupsafe import Markup

from data_pipelines.suggestions import counted
from zse_jax.explain import evaluation_figures, figures, pages, report_parts, style
from zse_jax.explain.correspondence import LINE_STYLES, Explainer
from zse_jax.explain.report_parts import Headline
from zse_jax.retrieval.results import Evaluation, as_text

COLUMNS = 10
"""Number of photos in the row of a query."""

EACH = 4
"""Number of best, of typical and of worst queries."""

CONVENTIONS = (
    "Conventions of average precision: exact divides the precisions at the hits by min(k, R), with "
    "R photos of the class; voc, used by ZSE, interpolates them first; hits divides by the number "
    "of hits among the first k. P@k counts hits among the first min(k, R)."
)


class Embedded(NamedTuple):
    """Embeddings of some sketches and photos, for a map.

    Attributes:
      vectors: [n, d], the embeddings.
      labels: class of each.
      is_sketch: which of them are sketches.
    """

    vectors: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    is_sketch: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Material:
    """The contents of a report other than the numbers of the evaluation.

    Attributes:
      sketches, photos: the images that were ranked; only those that are shown are read.
      headline: the "ranking/scope/metric" that orders queries and classes; "": the first.
      sketch_instances, photo_instances: for fine-grained retrieval, where only the photo of the
        sketch's instance is right; without them, all photos of its class are right.
      explainer: explainer of the system that was evaluated; None: no explanations.
      unexplained: why there is no explainer.
      records: the lines of the training run's `metrics.jsonl`.
      validated_on: the classes that the run evaluated while training.
      embedded: the embeddings for the map; None: no map.
      about: facts about the run, by name.
      config: the config as text.
      warnings: what the reader must know about these numbers.
    """

    sketches: style.Images
    photos: style.Images
    headline: str = ""
    sketch_instances: Int[np.ndarray, " q"] | None = None
    photo_instances: Int[np.ndarray, " g"] | None = None
    explainer: Explainer | None = None
    unexplained: str = ""
    records: Sequence[Mapping[str, Any]] = ()
    validated_on: str = "unseen classes"
    embedded: Embedded | None = None
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: str = ""
    warnings: Sequence[str] = ()


def report(evaluation: Evaluation, material: Material, *, progress: bool = False) -> str:
    """The page, as HTML.

    Args:
      evaluation: the results.
      material: the other contents.
      progress: show a progress bar for the explanations.

    Raises:
      ValueError: the evaluation did not measure the headline.
    """
    headline = report_parts.headline(evaluation, material.headline)
    instances = material.sketch_instances, material.photo_instances
    right = {
        ranking: figures.right_photos(
            top, evaluation.sketch_labels, evaluation.photo_labels, *instances
        )
        for ranking, top in evaluation.top.items()
    }
    chosen = report_parts.chosen_queries(evaluation, headline, right[headline.ranking], EACH)
    groups = _groups(evaluation, material, headline, right[headline.ranking], chosen, progress)
    warnings = [*material.warnings]
    if material.explainer is None and material.unexplained:
        warnings.append(f"This report has no explanations: {material.unexplained}")
    return pages.render(
        "report.html",
        title=evaluation.name,
        lead=_lead(evaluation),
        tiles=report_parts.tiles(evaluation, headline),
        warnings=warnings,
        scope_name=evaluation.scope,
        metric_names=[evaluation.labels[name] for name in evaluation.metrics],
        metrics=report_parts.metric_rows(evaluation, headline),
        conventions=CONVENTIONS if evaluation.scope == "convention" else "",
        charts=_charts(evaluation, material, headline, right),
        headline=str(headline),
        class_columns=report_parts.class_columns(evaluation, headline),
        classes=report_parts.class_rows(evaluation, headline),
        query_text=_query_text(evaluation, headline),
        groups=groups,
        confusions=_confusions(evaluation, material, headline),
        confusion_text=(
            f"The share of photos of another class among each sketch's first photos by "
            f"{headline.ranking} (100, or as many as its class has), with the clearest example."
        ),
        facts=_facts(evaluation, material),
        config=material.config,
        line_styles=LINE_STYLES,
    )


def _lead(evaluation: Evaluation) -> str:
    text = (
        f"{counted(evaluation.queries, 'sketch', 'sketches')}, each ranking "
        f"{counted(evaluation.gallery, 'photo', 'photos')} of "
        f"{counted(evaluation.classes, 'class', 'classes')}."
    )
    if evaluation.queries_without_match:
        sketches = counted(evaluation.queries_without_match, "sketch", "sketches")
        text += f" Excluded from the metrics: {sketches} without {evaluation.missing}."
    return text


def _query_text(evaluation: Evaluation, headline: Headline) -> str:
    by = (
        f"by the rank of their matching photo in the whole gallery, by {headline.ranking}"
        if report_parts.fine_grained(evaluation)
        else f"by {headline}"
    )
    return (
        f"Chosen {by}, from different classes if possible. Solid green and a check: right. "
        "Dashed orange and a cross: wrong. The numbers are rank and similarity."
    )


def _groups(
    evaluation: Evaluation,
    material: Material,
    headline: Headline,
    right: Bool[np.ndarray, "q k"],
    chosen: Mapping[str, Sequence[int]],
    progress: bool,
) -> list[dict[str, Any]]:
    """The chosen queries, with explanations of their first photo and their first right photo."""
    top, similarity = (x[headline.ranking] for x in (evaluation.top, evaluation.top_similarity))
    two_stage = "@" in headline.ranking  # then the similarities are ranks

    def name(label: Any) -> str:
        return style.class_name(int(label), evaluation.class_names)

    explained: dict[int, list[pages.Explained]] = {}
    if material.explainer is not None:
        wanted = [
            (query, rank, unfold)
            for queries in chosen.values()
            for place, query in enumerate(queries)
            for rank, unfold in _worth_explaining(right[query], place == 0)
        ]
        images = [
            (material.sketches[query], material.photos[int(top[query, rank])])
            for query, rank, _ in wanted
        ]
        found = pages.explanations(material.explainer, images, progress)
        for (query, rank, unfold), pair, explanation in zip(wanted, images, found, strict=True):
            photo = name(evaluation.photo_labels[top[query, rank]])
            verdict = "right" if right[query, rank] else "wrong"
            title = f"Why photo {rank + 1} ({photo}, {verdict})?"
            explained.setdefault(query, []).append(
                pages.explained(*pair, *explanation, title=title, shown=unfold)
            )

    def shown(query: int) -> pages.Query:
        photos = [
            pages.Photo(
                pages.image_uri(material.photos[photo], pages.THUMBNAIL),
                name(evaluation.photo_labels[photo]),
                rank + 1,
                bool(right[query, rank]),
                "" if two_stage else f"{similarity[query, rank]:#.3g}",
            )
            for rank, photo in enumerate(top[query, :COLUMNS].tolist())
            if photo >= 0
        ]
        return pages.Query(
            pages.image_uri(material.sketches[query], pages.THUMBNAIL),
            name(evaluation.sketch_labels[query]),
            report_parts.query_note(evaluation, headline, query, right[query]),
            photos,
            explained.get(query, ()),
        )

    return [
        {"name": f"{group.capitalize()} queries", "queries": [shown(query) for query in queries]}
        for group, queries in chosen.items()
    ]


def _worth_explaining(right: Bool[np.ndarray, " k"], shown: bool) -> list[tuple[int, bool]]:
    """The first photo and the first right one: ranks from 0, and whether they are unfolded."""
    if right[0] or not right.any():
        return [(0, shown)]
    return [(0, shown), (int(right.argmax()), False)]


def _charts(
    evaluation: Evaluation,
    material: Material,
    headline: Headline,
    right: Mapping[str, Bool[np.ndarray, "q k"]],
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(figure: style.Figure, caption: str) -> None:
        found.append({"svg": Markup(style.inline_svg(figure, caption)), "caption": caption})

    names, values, bounds = report_parts.class_values(evaluation, headline)
    mean = evaluation.values[headline.ranking][headline.scope][headline.metric]
    chance = evaluation.chances[headline.scope]
    add(
        evaluation_figures.class_bars(
            names, values, bounds, metric=headline.metric, mean=mean, chance=chance
        ),
        f"{headline} of each class in percent, best first.",
    )
    kept = min(x.shape[1] for x in right.values())
    relevant = report_parts.relevant(
        evaluation, material.sketch_instances, material.photo_instances
    )
    # A shortlist (RANKING@K) hardly differs from its ranking: the first rankings are drawn.
    drawn = sorted(right, key=lambda name: "@" in name)[: len(style.LINES)]
    curves = {name: evaluation_figures.depth_curve(right[name], relevant) for name in drawn}
    of = "" if len(drawn) == len(right) else f" Only of {', '.join(drawn)}."
    if report_parts.fine_grained(evaluation):
        add(
            evaluation_figures.found_within(curves, evaluation.chance),
            f"Share of sketches with the matching photo among the first k, k = 1 to {kept}.{of}",
        )
    else:
        add(
            evaluation_figures.precision_recall(curves, evaluation.chance),
            f"Means over sketches after the first k photos, k = 1 to {kept}; dots at 10, 50, "
            f"200.{of}",
        )
    if material.embedded is not None:
        places = evaluation_figures.project(material.embedded.vectors)
        add(
            evaluation_figures.embedding_map(
                places, *material.embedded[1:], class_names=evaluation.class_names
            ),
            f"{len(places):,} of the images by their embedding. Neighbours are similar; large "
            "distances have little meaning.",
        )
    metric = f"{headline.scope}/{headline.metric}"
    validated_on = material.validated_on
    try:
        curves_figure = figures.training_curves(
            material.records,
            metric=metric,
            chance=chance if validated_on == "unseen classes" else None,
            classes=validated_on,
            stacked=True,
        )
    except ValueError:  # a checkpoint without a training run has no records
        return found
    validated = f", and {metric} on some of the {validated_on}"
    add(curves_figure, f"The training loss{validated if len(curves_figure.axes) > 1 else ''}.")
    return found


def _confusions(
    evaluation: Evaluation, material: Material, headline: Headline
) -> list[dict[str, Any]]:
    rows = report_parts.confusions(evaluation, headline.ranking)
    for row in rows:
        if row["example"] is not None:
            sketch, photo, row["rank"] = row["example"]
            row["sketch"] = pages.image_uri(material.sketches[sketch], pages.THUMBNAIL)
            row["photo"] = pages.image_uri(material.photos[photo], pages.THUMBNAIL)
        else:
            row["sketch"] = ""
    return rows


def _facts(evaluation: Evaluation, material: Material) -> dict[str, str]:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in evaluation.seconds.items())
    notes = {
        str(name).replace("_", " "): as_text(value) for name, value in evaluation.notes.items()
    }
    return {**material.about, **notes, "time": seconds}
