"""The files that a path of a data set means: a file, the data files of a folder, or those that match a pattern."""

import glob
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from alignkd.disk.next_step import tried
from alignkd.disk.opening import read_regular
from alignkd.vlm.errors import InputError, one_line

# suffix -> kind; a file of a kind that cannot be read counts too, because a folder of it is not a folder of data
_KINDS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz"), "json"),
    ".parquet": "parquet",
    ".tar": "tar",
    **{
        suffix: suffix[1:]
        for suffix in (".arrow", ".feather", ".csv", ".tsv", ".avro", ".zip", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst")
    },
    **{
        suffix: suffix[1:] for suffix in (".json.zst", ".jsonl.zst", ".json.xz", ".jsonl.xz", ".json.bz2", ".jsonl.bz2")
    },
}
# files that other programs write beside the data
_BESIDE = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "_success"))
GENERATION_FILE = "generation.json"
"""The file by which a folder of `alignkd generate` is recognised; its data lie in `ANSWERS_FOLDER` beside it."""
ANSWERS_FOLDER = "answers"
# one report per finished shard of answers
_REPORTS_FOLDER = "shards"
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testdev", "eval"), "test"),
}
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LARGEST_RANGE = 1_000_000
_SHOWN = 4


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that `path` means, in the order of their numbers and names.

    Args:
        path: a file; a folder of data files of one kind, Parquet also in folders below it; a folder that `alignkd
            generate` wrote; or a pattern with `*`, `?`, `[...]`, `**` or `{000..012}`.

    Raises:
        InputError: nothing is there; a folder of several kinds of files or of several splits; answers of an unfinished
            `alignkd generate`.
    """
    if path.is_dir():
        return _of_folder(_answers_in(path) or path)
    if _is_pattern(str(path)) and not path.exists():
        return _of_pattern(str(path))
    return (path,)


def _answers_in(folder: Path) -> Path | None:
    """The folder of answers, if `alignkd generate` wrote the folder or the one around it.

    Raises:
        InputError: it is not finished. Answers that come later would change the order of the data.
    """
    around = folder.parent if folder.name == ANSWERS_FOLDER else folder
    file, answers = around / GENERATION_FILE, around / ANSWERS_FOLDER
    if not file.is_file() or not answers.is_dir():
        return None
    try:
        generation = json.loads(read_regular(file))
        planned = -(-int(generation["num_samples"]) // int(generation["shard_size"]))
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{file}: no numbers of samples and shards of `alignkd generate` ({one_line(repr(error))[:80]}); restore "
            "the file, or give the answers as a pattern"
        ) from error
    finished = sum(1 for _ in (around / _REPORTS_FOLDER).glob("[0-9]*.json"))
    if finished < planned:
        raise InputError(
            f"{around}: `alignkd generate` has finished {finished} of {planned} shards; run it until all are finished"
        )
    return answers


def kind_of_name(path: Path) -> str | None:
    """`json`, `parquet`, `tar` or a kind that cannot be read, by the suffix; None for a file without data."""
    name = path.name.lower()
    if name.startswith((".", "readme", "license")) or name in _BESIDE:
        return None
    suffixes = Path(name).suffixes
    found = (_KINDS.get("".join(suffixes[-count:])) for count in (2, 1))
    return next((kind for kind in found if kind is not None), None)


def _of_folder(folder: Path) -> tuple[Path, ...]:
    files = {path: kind for path in _candidates(folder) if (kind := kind_of_name(path)) is not None}
    if not files:
        raise InputError(
            f"{tried(folder)}: no data file in this folder; give a folder with .parquet, .tar, .json or .jsonl files, "
            "or a file"
        )
    if len(set(files.values())) > 1:
        raise InputError(f"{folder}: files of several kinds ({_one_of_each(folder, files)}); give a pattern for one")
    _check_splits(folder, files)
    return natural_order(files)


def _candidates(folder: Path) -> Iterator[Path]:
    """The files of a folder, and Parquet files of the folders below it; nothing hidden."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from (
                found
                for found in path.rglob("*.parquet")
                if not any(part.startswith(".") for part in found.relative_to(folder).parts)
            )
        else:
            yield path


def _one_of_each(folder: Path, files: dict[Path, str]) -> str:
    first = {kind: path for path, kind in sorted(files.items(), reverse=True)}
    return ", ".join(f"{kind}: {path.relative_to(folder)}" for kind, path in sorted(first.items()))


def _check_splits(folder: Path, files: Iterable[Path]) -> None:
    """Refuse a folder with a train and a test split: training on both would go unnoticed."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if splits.keys() <= {"", "train"} or len(splits) == 1:
        return
    choice = " or ".join(_pattern_for(folder, splits[split]) for split in sorted(splits, reverse=True))
    raise InputError(f"{folder}: holds several splits of a data set; give one of them by a pattern: {choice}")


def _split_of(path: Path) -> str:
    """The split that a file belongs to, by its folder or by a word of its name; empty if none is named."""
    for part in path.parts[:-1]:
        if part.lower() in _SPLITS:
            return _SPLITS[part.lower()]
    found = _SPLIT.search(path.name)
    return "" if found is None else _SPLITS[found[1].lower()]


def _pattern_for(folder: Path, files: Sequence[Path]) -> str:
    """A pattern for the files of a split."""
    path = files[0]
    found = _SPLIT.search(path.name)
    # the character before the word too: `*_test*` does not match `latest_train`
    before = "" if found is None or not found.start() else f"*{path.name[found.start() - 1]}"
    name = "*" if found is None else f"{before}{found[1]}*"
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    parents = {file.parent for file in files}
    return str((path.parent if len(parents) == 1 else folder / "**") / (name + suffix))


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) or _RANGE.search(path) is not None


def _of_pattern(pattern: str) -> tuple[Path, ...]:
    found = list(dict.fromkeys(path for one in _expanded(pattern) for path in _matching(one, pattern)))
    if not found:
        raise InputError(f"{tried(pattern)}: no file matches this pattern; check the path")
    return natural_order(found)


def _matching(pattern: str, given: str) -> list[Path]:
    if glob.has_magic(pattern):
        return [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]  # noqa: PTH207
    if not Path(pattern).exists():
        raise InputError(f"{tried(given)}: {pattern} is missing; restore the file, or correct the range")
    return [Path(pattern)]


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` -> `a-08.tar`, `a-09.tar`, `a-10.tar`; several ranges give every combination."""
    ranges: list[Sequence[str]] = []
    for first, last in _RANGE.findall(pattern):
        numbers = range(int(first), int(last) + 1)
        if not numbers or len(numbers) > _LARGEST_RANGE:
            raise InputError(
                f"{pattern}: {{{first}..{last}}} holds {len(numbers)} numbers; give the first and the last"
            )
        ranges.append([f"{number:0{len(first)}d}" for number in numbers])
    parts = _RANGE.sub("\0", pattern).split("\0")
    for chosen in product(*ranges):
        yield "".join(map("".join, zip(parts, (*chosen, ""), strict=True)))


def natural_order(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Paths in the order of their names, runs of digits by their value: `part-2` before `part-10`."""
    return tuple(sorted(paths, key=lambda path: [natural_key(part) for part in path.parts]))


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key in which runs of digits are compared by their value."""
    pieces = re.split(r"(\d+)", text)
    return tuple((1, int(piece), piece) if number % 2 else (0, 0, piece) for number, piece in enumerate(pieces))
