"""Makes the tables of docs/objectives.md from the code: objectives, what they need, and on which logits they are exact.

python -m alignkd.pipeline.plan.objectives.reference docs/objectives.md    # rewrite the tables of the page
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.pipeline.plan.objectives.sample_bytes import bytes_of, bytes_of_logits
from alignkd.pipeline.plan.objectives.term_notes import TERM_NOTES
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES, StoredLogits
from alignkd.student_train.objective.presets import METHODS
from alignkd.student_train.objective.terms import TERMS

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def with_tables(page: str) -> str:
    """The page with new tables between `BEGIN` and `END`."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def tables() -> str:
    """All tables, as markdown."""
    return "\n\n".join((_presets(), _divergences(), _logits(), _terms()))


def _presets() -> str:
    rows = [("preset", "source", "sets", "needs in `store`", "kB", "logits", "what differs, and why")]
    for name, method in METHODS.items():
        settings = {**method.losses, **method.train}
        rows.append(
            (
                f"`{name}`",
                f"{method.method}, {method.source}",
                ", ".join(f"`{key}: {_plain(value)}`" for key, value in settings.items()),
                ", ".join(f"`{key}: {_plain(value)}`" for key, value in method.store.items()) or "logits alone",
                _kilobytes(bytes_of(method.store)) if method.store else "",
                " ".join(f"`{kind}`" for kind in method.logits),
                method.differs,
            )
        )
    return f"### Presets\n\n{_table(rows)}"


def _divergences() -> str:
    kinds: Sequence[StoredLogits] = get_args(StoredLogits)
    rows: list[Sequence[str]] = [("`logit_divergence`", "formula", "source", "settings", *kinds)]
    for name, entry in DIVERGENCES.items():
        formula = f"{entry.formula} ({entry.note})" if entry.note else entry.formula
        accuracy = [entry.accuracy.get(kind, "refused") for kind in kinds]
        settings = " ".join(f"`{key}`" for key in entry.settings)
        rows.append((f"`{name}`", formula.replace("|", "\\|"), entry.source, settings, *accuracy))
    return f"### Divergences of answer logits\n\n{_table(rows)}"


def _logits() -> str:
    rows = [("`logits`", "kB per sample"), *((kind, _kilobytes(size)) for kind, size in bytes_of_logits().items())]
    return f"### Answer logits\n\n{_table(rows)}"


def _terms() -> str:
    rows = [("term", "formula", "source", "needs in `store`: kB per sample", "on which logits")]
    for name in TERMS:
        if name == "logit":
            continue  # the table of divergences
        note = TERM_NOTES[name]
        needs = [f"`{shown}`: {_kilobytes(bytes_of(keys))}" if keys else f"`{shown}`" for shown, keys in note.stores]
        formula = note.formula.replace("|", "\\|")
        rows.append((f"`{name}`", formula, note.source, "; ".join(needs) or "nothing", note.note))
    return f"### Further terms\n\n{_table(rows)}"


def _plain(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_plain(inner)}' for key, inner in value.items())}}}"
    return dump_yaml(value).strip().removesuffix("...").strip()


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f}" if size >= 10_000 else f"{size / 1000:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    heading, *body = rows
    lines = [heading, [":--"] * len(heading), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(path: Path) -> None:
    """Rewrite the tables of the page."""
    write_whole(path, with_tables(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
