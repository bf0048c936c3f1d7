"""What the figures of the demo count, and their intervals: against loops, and against data of known spread."""

import json
import math

import numpy as np
import pytest
from scipy.stats import t as student_t

from alignkd.pipeline.demo.evaluate import Answer, Evaluation
from alignkd.pipeline.demo.results.bootstrap import (
    Draws,
    Interval,
    RightAnswers,
    expanded_tail,
    interval,
    intervals,
    scene_numbers,
)
from alignkd.pipeline.demo.results.figures import most_frequent_answers, visual, visual_accuracy, without_looking
from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.pipeline.demo.world.questions import SCENE_QUESTION_TYPES, TEXT_QUESTION_TYPES
from alignkd.vlm.errors import InputError

KINDS = (*SCENE_QUESTION_TYPES, *TEXT_QUESTION_TYPES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    """A training set."""
    return write_dataset(
        tmp_path_factory.mktemp("figures"), num_scenes=600, pool="train", seed=0, questions_per_scene=6
    )


def asked(files: DatasetFiles) -> list[tuple[str, str, str]]:
    """Type, text and answer of every question."""
    found = []
    for entry in json.loads(files.conversations.read_text()):
        values = [turn["value"].removeprefix("<image>\n") for turn in entry["conversations"]]
        found += zip(entry["question_types"], values[::2], values[1::2], strict=True)
    return found


def test_exactly_the_types_with_pictures_have_several_answers_to_one_question(files: DatasetFiles) -> None:
    """The text of a question that needs no picture decides its answer."""
    answers: dict[str, dict[str, set[str]]] = {kind: {} for kind in KINDS}
    for kind, text, answer in asked(files):
        answers[kind].setdefault(text, set()).add(answer)
    most = {kind: max(map(len, found.values())) for kind, found in answers.items()}
    assert all(most[kind] > 1 for kind in SCENE_QUESTION_TYPES)
    assert all(most[kind] == 1 for kind in TEXT_QUESTION_TYPES)


def test_without_looking_gives_each_type_its_most_frequent_answer(files: DatasetFiles) -> None:
    counts: dict[str, dict[str, int]] = {}
    for kind, _, answer in asked(files):
        of_kind = counts.setdefault(kind, {})
        of_kind[answer] = of_kind.get(answer, 0) + 1
    frequent = most_frequent_answers(files.conversations)
    assert frequent.keys() == counts.keys()
    for kind, answer in frequent.items():
        assert counts[kind][answer] == max(counts[kind].values())
    answered = Evaluation(tuple(made(kind, expected="yes", found="no") for kind in ("exists", "count", "unknown")))
    given = without_looking(files.conversations, answered).answers
    assert [answer.found for answer in given] == [frequent["exists"], frequent["count"], ""]
    assert [answer.expected for answer in given] == ["yes"] * 3


def made(kind: str, *, expected: str = "1", found: str = "1", image: str | None = "a.png", name: str = "x") -> Answer:
    """An answer."""
    images = () if image is None else (image,)
    return Answer(id=name, images=images, question="?", question_type=kind, expected=expected, found=found)


def test_questions_without_a_picture_do_not_count() -> None:
    evaluation = Evaluation(
        (
            made("sum"),
            made("sum", found="2"),
            made("total"),
            made("compare", image=None),
            made("arithmetic", image=None, found="2"),
        )
    )
    assert [answer.question_type for answer in visual(evaluation.answers)] == ["sum", "sum", "total"]
    assert visual_accuracy(evaluation) == 2 / 3
    assert evaluation.accuracy == 3 / 5


def random_evaluations(seeds: int, scenes: int, chance: float, seed: int) -> list[Evaluation]:
    """Answers of several seeds to the same questions, 1 to 5 of each scene, and some without a picture."""
    rng = np.random.default_rng(7)
    questions = [(scene, turn) for scene in range(scenes) for turn in range(int(rng.integers(1, 6)))]
    rng = np.random.default_rng(seed)

    def answer(scene: int, turn: int) -> Answer:
        found = "1" if rng.random() < chance else "2"
        if scene % 5 == 4:
            return made("compare", found=found, image=None, name=f"{scene}-{turn}")
        return made("sum", found=found, image=f"{scene}.png", name=f"{scene}-{turn}")

    return [Evaluation(tuple(answer(*question) for question in questions)) for _ in range(seeds)]


def test_right_answers_are_counted_by_scene() -> None:
    evaluations = random_evaluations(3, 9, 0.5, seed=0)
    row = RightAnswers.of(evaluations)
    scenes = sorted({answer.images for answer in visual(evaluations[0].answers)})
    for seed, evaluation in enumerate(evaluations):
        for number, scene in enumerate(scenes):
            given = [answer.right for answer in evaluation.answers if answer.images == scene]
            assert row.right_SC[seed, number] == sum(given)
            assert row.asked_C[number] == len(given)


def test_different_questions_are_refused() -> None:
    first, second = random_evaluations(2, 9, 0.5, seed=0)
    with pytest.raises(InputError, match="different questions"):
        RightAnswers.of([first, Evaluation(second.answers[1:])])


def test_draws_equal_a_loop_over_resampled_answers() -> None:
    """Each draw as a list of seeds and scenes, with repetitions, whose answers are counted one by one."""
    evaluations = random_evaluations(4, 12, 0.6, seed=1)
    (teacher,) = random_evaluations(1, 12, 0.9, seed=2)
    given = [visual(evaluation.answers) for evaluation in evaluations]
    numbers = scene_numbers(given[0])
    draws = Draws.make(4, int(numbers.max()) + 1, draws=25, seed=3)
    found, top = draws.accuracies(RightAnswers.of(evaluations)), draws.accuracies(RightAnswers.of([teacher]))
    for draw in range(25):
        seeds = np.repeat(np.arange(4), draws.seeds_BS[draw].astype(int))
        scenes = np.repeat(np.arange(len(draws.scenes_BC[draw])), draws.scenes_BC[draw].astype(int))
        assert len(seeds) == 4 and len(scenes) == numbers.max() + 1
        resampled = [
            [given[seed][place].right for seed in seeds for place in np.flatnonzero(numbers == scene)]
            for scene in scenes
        ]
        flags = [flag for of_scene in resampled for flag in of_scene]
        assert found[draw] == pytest.approx(sum(flags) / len(flags), abs=1e-12)
        known = visual(teacher.answers)
        flags = [known[place].right for scene in scenes for place in np.flatnonzero(numbers == scene)]
        assert top[draw] == pytest.approx(sum(flags) / len(flags), abs=1e-12)


def test_shares_and_differences_equal_sums_by_hand() -> None:
    rows = {
        "supervised": random_evaluations(3, 30, 0.3, seed=1),
        "more": random_evaluations(3, 30, 0.6, seed=2),
        "most": random_evaluations(3, 30, 0.8, seed=3),
    }
    (teacher,) = random_evaluations(1, 30, 0.95, seed=4)
    partners = {"supervised": "supervised", "more": "absent", "most": "more"}
    found = intervals(rows, teacher, base="supervised", partners=partners)
    assert found.keys() == {"more", "most"}
    means = {name: np.mean([visual_accuracy(one) for one in group]) for name, group in rows.items()}
    for name in ("more", "most"):
        share = found[name][0]
        gap = visual_accuracy(teacher) - means["supervised"]
        assert share is not None and share.low is not None and share.high is not None
        assert share.estimate == pytest.approx((means[name] - means["supervised"]) / gap)
        assert share.low < share.estimate < share.high
    assert found["more"][1] is None
    difference = found["most"][1]
    assert difference is not None and difference.estimate == pytest.approx(means["most"] - means["more"])
    assert intervals(rows, teacher, base="supervised", partners=partners) == found
    upside_down = {"most": rows["most"], "more": rows["more"]}
    backwards = intervals(upside_down, rows["supervised"][0], base="most", partners=partners)
    assert backwards["more"][0] is None


def test_rows_are_drawn_together() -> None:
    """A partner with the same answers differs by nothing in every draw; drawn apart, it would differ."""
    group = random_evaluations(3, 30, 0.5, seed=1)
    (teacher,) = random_evaluations(1, 30, 0.95, seed=4)
    rows = {"supervised": random_evaluations(3, 30, 0.3, seed=2), "one": group, "other": group}
    found = intervals(rows, teacher, base="supervised", partners={"one": "other", "other": "one"})
    assert found["one"][1] == Interval(estimate=0, low=0, high=0)


def test_one_seed_gives_no_interval() -> None:
    rows = {"supervised": random_evaluations(1, 9, 0.3, seed=1), "more": random_evaluations(1, 9, 0.6, seed=2)}
    share, difference = intervals(rows, rows["more"][0], base="supervised", partners={"more": "supervised"})["more"]
    assert share == Interval(estimate=1.0, low=None, high=None)
    assert difference is not None and difference.low is None and difference.high is None


def test_the_interval_of_a_mean_of_few_seeds_is_about_that_of_student_t() -> None:
    """One question per scene and all questions alike, so that the seeds are the only spread."""
    values = np.array([0.31, 0.52, 0.44, 0.61, 0.39, 0.47, 0.55, 0.42, 0.50, 0.36])
    row = RightAnswers(right_SC=np.tile(values[:, None], (1, 40)), asked_C=np.ones(40))
    drawn = Draws.make(10, 40, draws=20_000).accuracies(row)
    found = interval(float(values.mean()), drawn, 10)
    half = student_t.ppf(0.975, 9) * values.std(ddof=1) / math.sqrt(10)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_percentiles_approach_the_usual_ones_with_many_seeds() -> None:
    tails = [expanded_tail(seeds) for seeds in (2, 5, 10, 100, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)


def test_intervals_cover_the_true_difference_as_often_as_they_should() -> None:
    """400 made experiments with the demo's proportions: 10 paired seeds, whose spread is larger than that of questions.

    The share of intervals with the true difference, 0.1, has a standard error of 1.1 % here.
    """
    covered = usual = 0
    rng = np.random.default_rng(5)
    asked = np.full(300, 4.0)
    for trial in range(400):
        base_SC = 0.4 + rng.normal(0, 0.04, (10, 1)) + rng.normal(0, 0.1, 300)
        more_SC = base_SC + rng.normal(0.1, 0.06, (10, 1)) + rng.normal(0, 0.1, 300)
        chances = [np.clip(chance_SC, 0, 1) for chance_SC in (base_SC, more_SC)]
        base, more = (
            RightAnswers(right_SC=rng.binomial(4, chance_SC).astype(float), asked_C=asked) for chance_SC in chances
        )
        draws = Draws.make(10, 300, draws=500, seed=trial)
        drawn = draws.accuracies(more) - draws.accuracies(base)
        found = interval(0.0, drawn, 10)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.1 <= found.high
        usual += np.quantile(drawn, 0.025) <= 0.1 <= np.quantile(drawn, 0.975)
    assert 0.93 <= covered / 400 <= 0.985
    assert usual < covered
