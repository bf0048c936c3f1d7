"""`alignkd shards select`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.numbers import FiniteFloat
from alignkd.pipeline.console.outputs import claim_file, force_option
from alignkd.pipeline.console.printing import format_count, json_option, print_json
from alignkd.pipeline.shards.options import LOCATION, STORE, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.tools.select.choose import Choice, Chosen

MAX_NAMED = 10
CRITERIA = ("difference", "visual-advantage", "label-rank", "perplexity")
# option -> the only criterion that takes it
_OWN = {"reference": "difference", "above": "visual-advantage", "k": "label-rank"}


@click.command()
@STORE
@click.option("--by", type=click.Choice(CRITERIA), required=True, help="What the score of a sample is.")
@click.option(
    "--reference", type=LOCATION, help="difference: a store of the same data, or FILE.safetensors (index, mean_nll)."
)
@click.option("--k", type=click.IntRange(min=1), help="label-rank: how many most likely tokens count.")
@click.option("--above", type=FiniteFloat(), help="visual-advantage: score by the share of labels above this, in nats.")
@click.option("--ratio", type=FiniteFloat(0, 1), help="Keep this share of the scored samples, the best first.")
@click.option("--min", "least", type=FiniteFloat(), help="Keep samples with at least this score.")
@click.option("--max", "most", type=FiniteFloat(), help="Keep samples with at most this score.")
@click.option("--keep-unscored", is_flag=True, help="Keep samples without a score; without it they are dropped.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The list of samples to write, JSON.")
@force_option
@json_option
@clean_errors
def select(
    store: Path | str,
    by: Any,
    reference: Path | str | None,
    k: int | None,
    above: float | None,
    ratio: float | None,
    least: float | None,
    most: float | None,
    keep_unscored: bool,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Choose samples of STORE to train on, by the teacher's targets.

    The score of a sample is, with --by:

    \b
    difference        mean negative log-probability of a label for a
                      reference model minus that for the teacher;
                      keeps the highest half unless told otherwise
    perplexity        of the labels for the teacher; low is good
    visual-advantage  mean over the labels of the log-probability that
                      the image adds; needs a counterfactual pass
    label-rank        share of labels among the teacher's --k most
                      likely tokens; keeps samples where all are

    Training takes the list as `samples` of a store: `store: [{path: STORE, samples: LIST}]`. The list holds for any
    store of the same samples.

    Example: alignkd shards select runs/store --by difference --reference runs/small --ratio 0.5 --out half.json
    """
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.select.choose import Choice, choose

    bounds = _bounds(by, ratio, least, most)
    _check_own_options(by, {"reference": reference, "above": above, "k": k})
    choice = Choice(by=by, reference=reference, above=above, k=k, keep_unscored=keep_unscored, **bounds)
    claim_file(
        "--out",
        out,
        _is_selection,
        reads=[reference],
        closed=[place for place in (store, reference) if place is not None],
        force=force,
    )
    chosen = choose(StoreReader(store), choice, progress_bar)
    chosen.selection.write(out)
    if as_json:
        print_json(_document(store, out, chosen))
        return
    click.echo("\n".join(_lines(store, out, choice, chosen)))


def _bounds(by: str, ratio: float | None, least: float | None, most: float | None) -> dict[str, float | None]:
    """`ratio`, `least` and `most` with the defaults of the criterion."""
    if ratio is not None and (least is not None or most is not None):
        raise click.UsageError("--ratio keeps a share of the samples, --min and --max all within bounds; give one kind")
    if least is not None and most is not None and least > most:
        raise click.UsageError(f"--min is {least:g}, more than --max {most:g}, so nothing would be kept; lower it")
    if ratio is least is most is None:
        if by == "difference":
            ratio = 0.5
        elif by == "label-rank":
            least = 1.0
        else:
            raise click.UsageError(f"--by {by} needs --ratio, --min or --max")
    return {"ratio": ratio, "least": least, "most": most}


def _check_own_options(by: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and _OWN[name] != by:
            raise click.UsageError(f"--{name} belongs to --by {_OWN[name]}, found --by {by}")
    for name, why in (("reference", "a store of the same data, or FILE.safetensors"), ("k", "a number of tokens")):
        if given[name] is None and _OWN[name] == by:
            raise click.UsageError(f"--by {by} needs --{name}: {why}")


def _is_selection(path: Path) -> bool:
    from alignkd.storage.errors import StoreError
    from alignkd.storage.tools.select.selection import Selection

    try:
        Selection.read(path)
    except StoreError:
        return False
    return True


def _document(store: Path | str, out: Path, chosen: "Chosen") -> dict[str, Any]:
    selection = chosen.selection
    return {
        "store": str(store),
        "out": str(out),
        "by": selection.by,
        "settings": dict(selection.settings),
        "samples": selection.num_samples,
        "kept": len(selection.kept),
        "dropped": selection.dropped,
        "without_score": selection.without_score,
        "missing": chosen.missing,
        "labels": chosen.labels,
        "undecided": chosen.undecided,
        "by_source": {name: {"kept": kept, "samples": total} for name, (kept, total) in chosen.by_source.items()},
        "scores": _scores(chosen),
        "hash": selection.content_hash,
    }


def _scores(chosen: "Chosen") -> dict[str, float]:
    import numpy as np

    known = chosen.scores[~np.isnan(chosen.scores)]
    return {"lowest": float(known.min()), "median": float(np.median(known)), "highest": float(known.max())}


def _lines(store: Path | str, out: Path, choice: "Choice", chosen: "Chosen") -> list[str]:
    selection, scores = chosen.selection, _scores(chosen)
    settings = ", ".join(f"{name} {value}" for name, value in selection.settings.items())
    lines = [
        f"{store}: by {selection.by} ({settings}): {len(selection.kept)} of "
        f"{format_count(selection.num_samples, 'sample')} kept, {selection.dropped} dropped",
        f"scores from {scores['lowest']:.4g} to {scores['highest']:.4g}, median {scores['median']:.4g}",
    ]
    if len(chosen.by_source) > 1:
        lines += [f"source {name}: {kept} of {total} kept" for name, (kept, total) in chosen.by_source.items()]
    if selection.without_score:
        verb = "kept" if choice.keep_unscored else "dropped"
        lines.append(f"{format_count(selection.without_score, 'sample')} without a score, {verb}")
    if chosen.missing:
        shown = ", ".join(chosen.missing[:MAX_NAMED]) + (
            ", ... (see --json)" if len(chosen.missing) > MAX_NAMED else ""
        )
        lines.append(f"{format_count(len(chosen.missing), 'sample')} not in reference {choice.reference}: {shown}")
    if chosen.undecided:
        lines.append(
            f"the rank of {chosen.undecided} of {chosen.labels} labels is not known: the label is less likely than all "
            f"kept tokens; they count as not among the {choice.k} most likely"
        )
    return [*lines, f"wrote {out}; train from it with `store: [{{path: {store}, samples: {out}}}]`"]
