"""The scores of an evaluation for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.table import TABLE_1, shown_value, table1_average
from alignkd.pipeline.console.printing import aligned, format_duration
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, family_config

MAX_LISTED = 10
AVERAGE = "average"


def published_rows(config: ModelConfig) -> dict[str, dict[str, float]]:
    """The published rows of models of a checkpoint's size; none if it is not of MobileVLM V2's shapes."""
    if not isinstance(config, VLMConfig):
        return {}
    sizes = [name.rpartition("-")[2] for name in MEMBERS if _same_shape(family_config(name), config)]
    return {title: dict(row) for title, row in TABLE_1.items() if any(size in title.split() for size in sizes)}


def result_lines(results: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A table with one line per benchmark, then what is to be known about the numbers.

    Args:
        results: content of `results.json`.
        published: rows to print beside, from `published_rows`.
    """
    yield from aligned([["benchmark", "score", *published, "questions", "unreadable", "time", "per second"],
                         *_rows(results, published)])  # fmt: skip
    for note in results["notes"]:
        yield f"note: {note}"
    for name, found in results["benchmarks"].items():
        for note in found.get("notes", ()):
            yield f"note: {name}: {note}"
        if (part := found.get("part")) is not None:
            yield f"part: {name}: mean score {100 * part['mean_score']:.2f} %; {found['no_score']}"
        elif found["no_score"] is not None:
            yield f"no score: {name}: {found['no_score']}"


def unusable_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The first few questions of each benchmark that could not be asked, and how many more there are."""
    for name, found in results["benchmarks"].items():
        unusable = found["unusable"]
        for one in unusable[:MAX_LISTED]:
            yield f"unusable: {name}: question {one['id']!r} (position {one['position']}): {one['reason']}"
        if (rest := len(unusable) - MAX_LISTED) > 0:
            yield f"unusable: {name}: {rest} more, see results.json"


def _rows(results: Mapping[str, Any], published: Mapping[str, Mapping[str, float]]) -> Iterator[list[str]]:
    for name, found in results["benchmarks"].items():
        value, unreadable = found.get("table_value"), found.get("unreadable")
        rate = found["questions_per_second"]
        yield [
            BENCHMARKS[name].title,
            shown_value(name, value),
            *(shown_value(name, row.get(name)) for row in published.values()),
            f"{found['answered']} of {found['questions']}",
            "-" if unreadable is None else str(len(unreadable)),
            format_duration(found["seconds"]),
            "-" if rate is None else f"{rate:.2f}",
        ]
    if results["average"] is not None or len(results["benchmarks"]) > 1:
        means = [table1_average(row) for row in published.values()]
        yield [
            AVERAGE,
            shown_value(AVERAGE, results["average"]),
            *(shown_value(AVERAGE, mean) for mean in means),
            *[""] * 4,
        ]


def _same_shape(member: VLMConfig, config: VLMConfig) -> bool:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size")
    return all(getattr(member.llama, key) == getattr(config.llama, key) for key in keys) and (
        member.projector_type == config.projector_type
    )
