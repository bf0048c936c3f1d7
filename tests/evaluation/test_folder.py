"""Which folder is that of a benchmark: MobileVLM's and LLaVA's layout, a folder of folders, another benchmark's."""

import shutil
from pathlib import Path

import pytest
from golden_evaluations import GOLDEN, NAMES, answers_to, copied, expected

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.folder import LAYOUTS, benchmark_folder, image_folder, question_file
from alignkd.vlm.errors import InputError

each_benchmark = pytest.mark.parametrize("name", NAMES)
# LLaVA's name of the folder, and the paths that differ there
LLAVA = {
    "gqa": (
        "gqa",
        [("images", "data/images"), ("testdev_balanced_questions.json", "data/testdev_balanced_questions.json")],
    ),
    "sqa": ("scienceqa", []),
    "textvqa": ("textvqa", []),
    "mme": ("MME", [("images", "MME_Benchmark_release_version")]),
    "mmbench": ("mmbench", [("mmbench_dev_en_20231003.tsv", "mmbench_dev_20230712.tsv")]),
    "pope": ("pope", []),
}


def test_the_order_of_the_benchmarks() -> None:
    assert list(BENCHMARKS) == list(LAYOUTS) == ["gqa", "sqa", "textvqa", "mme", "mmbench", "pope"]


@each_benchmark
def test_the_folder_itself_or_the_one_that_holds_it(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    assert benchmark_folder(folder, name) == benchmark_folder(tmp_path, name) == folder


@each_benchmark
def test_llavas_layout(name: str, tmp_path: Path) -> None:
    named, moves = LLAVA[name]
    folder = tmp_path / named
    shutil.copytree(GOLDEN / name / "data", folder)
    for old, new in moves:
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / old).rename(folder / new)
    assert benchmark_folder(tmp_path, name) == folder
    score = BENCHMARKS[name].score(folder, answers_to(name))
    assert score.headline_value == pytest.approx(expected(name)["headline"]["value"])
    assert len(BENCHMARKS[name].questions(folder)) == len(expected(name)["items"])


@each_benchmark
def test_the_folder_of_another_benchmark_is_refused(name: str) -> None:
    other = NAMES[NAMES.index(name) - 1]
    with pytest.raises(InputError, match=f"it is the folder of {other}, not of {name}"):
        benchmark_folder(GOLDEN / other / "data", name)


@each_benchmark
def test_missing_folders_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        benchmark_folder(tmp_path / "none", name)
    with pytest.raises(InputError, match=f"and no folder {name}"):
        benchmark_folder(tmp_path, name)


@each_benchmark
def test_every_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder, layout = copied(name, tmp_path), LAYOUTS[name]
    for names in (layout.question_files, layout.annotations):
        for file in names:
            place = folder / file
            if place.exists():
                place.rename(folder / "elsewhere")
                with pytest.raises(InputError, match=r"docs/evaluation\.md"):
                    BENCHMARKS[name].score(folder, answers_to(name))
                    BENCHMARKS[name].questions(folder)
                (folder / "elsewhere").rename(place)
    if layout.images:
        shutil.rmtree(folder / layout.images[0])
        with pytest.raises(InputError, match="no folder of images"):
            BENCHMARKS[name].questions(folder)


@each_benchmark
def test_a_question_file_of_another_benchmark_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    other = "pope" if name != "pope" else "gqa"
    shutil.copy(question_file(GOLDEN / other / "data", other), question_file(folder, name))
    with pytest.raises(InputError):
        BENCHMARKS[name].questions(folder)


@each_benchmark
def test_an_empty_question_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    question_file(folder, name).write_text("\n")
    with pytest.raises(InputError):
        BENCHMARKS[name].questions(folder)


@pytest.mark.parametrize("name", ["sqa", "mme"])
def test_of_the_folders_of_both_layouts_the_one_with_the_question_file(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    of_llava = folder.rename(tmp_path / LLAVA[name][0])
    (tmp_path / name).mkdir()
    assert benchmark_folder(tmp_path, name) == of_llava


@pytest.mark.parametrize("name", ["gqa", "mme"])
def test_of_the_image_folders_of_both_layouts_the_one_with_images(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    wanted = folder / dict(LLAVA[name][1])["images"]
    wanted.parent.mkdir(exist_ok=True)
    (folder / "images").rename(wanted)
    (folder / "images").mkdir()
    assert image_folder(folder, name) == wanted
    assert BENCHMARKS[name].score(folder, answers_to(name)).headline_value == expected(name)["headline"]["value"]
