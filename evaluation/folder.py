"""The folder of a benchmark in MobileVLM's layout (`data/benchmark_data`) or LLaVA's (`playground/data/eval`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from alignkd.vlm.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Names in the two layouts; the first of each is MobileVLM's.

    Attributes:
        folders: names of the benchmark's folder.
        question_files: names of the question file.
        images: paths of the folder of images; none if the question file contains them.
        annotations: paths of the file or folder with the expected answers.
    """

    folders: tuple[str, ...]
    question_files: tuple[str, ...]
    images: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "gqa": Layout(
            ("gqa",),
            ("llava_gqa_testdev_balanced.jsonl",),
            ("images", "data/images"),
            ("testdev_balanced_questions.json", "data/testdev_balanced_questions.json"),
        ),
        "sqa": Layout(
            ("sqa", "scienceqa"),
            ("llava_test_CQM-A.json",),
            ("images/test",),
            ("problems.json",),
        ),
        "textvqa": Layout(
            ("textvqa",),
            ("llava_textvqa_val_v051_ocr.jsonl",),
            ("train_images",),
            ("TextVQA_0.5.1_val.json",),
        ),
        "mme": Layout(
            ("mme", "MME"),
            ("llava_mme.jsonl",),
            ("images", "MME_Benchmark_release_version"),
            ("images", "MME_Benchmark_release_version"),
        ),
        "mmbench": Layout(
            ("mmbench",),
            ("mmbench_dev_en_20231003.tsv", "mmbench_dev_20230712.tsv"),
        ),
        "pope": Layout(
            ("pope",),
            ("llava_pope_test.jsonl",),
            ("val2014",),
            ("coco",),
        ),
    }
)


def benchmark_folder(root: Path, name: str) -> Path:
    """The folder of a benchmark: `root` itself if it holds the question file, else the folder in it of that name.

    Where `root` has the folders of both layouts, it is the first that holds the question file.

    Raises:
        InputError: neither exists.
    """
    layout = LAYOUTS[name]
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of {name}, or the folder that holds it")
    if _holds(root, name):
        return root
    folders = [root / folder for folder in layout.folders if (root / folder).is_dir()]
    if folders:
        return next((folder for folder in folders if _holds(folder, name)), folders[0])
    other = next((other for other in LAYOUTS if _holds(root, other)), None)
    found = f"it is the folder of {other}, not of {name}" if other else f"no {layout.question_files[0]} in it"
    raise InputError(f"{root}: {found}, and no folder {layout.folders[0]}; give the folder of {name}, or its parent")


def question_file(folder: Path, name: str) -> Path:
    """The question file in the folder of a benchmark; InputError if there is none."""
    return _first(folder, LAYOUTS[name].question_files, f"question file of {name}")


def annotation(folder: Path, name: str) -> Path:
    """The file or folder with the expected answers in the folder of a benchmark; InputError if there is none."""
    return _first(folder, LAYOUTS[name].annotations, f"annotation of {name}")


def image_folder(folder: Path, name: str) -> Path:
    """The folder of images in the folder of a benchmark; InputError if there is none."""
    return _first(folder, LAYOUTS[name].images, f"folder of images of {name}")


def _holds(folder: Path, name: str) -> bool:
    return any((folder / file).is_file() for file in LAYOUTS[name].question_files)


def _is_empty_folder(path: Path) -> bool:
    """Such as one of the other layout, into which nothing was copied."""
    return path.is_dir() and next(path.iterdir(), None) is None


def _first(folder: Path, names: tuple[str, ...], what: str) -> Path:
    found = [folder / name for name in names if (folder / name).exists()]
    if found:
        return next((one for one in found if not _is_empty_folder(one)), found[0])
    raise InputError(f"{folder}: no {what} ({' or '.join(names)}); docs/evaluation.md shows the files of the folder")
