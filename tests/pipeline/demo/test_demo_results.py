"""The pool `test` is opened once per row, for chosen settings only, and its tables follow from the log."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import demo_results
import demo_selection
import numpy as np
import pytest
from demo_results import check_released, evaluate_rows, listed, opened_rows, read_report, short_table, tables
from demo_rows.document_marks import between_marks
from demo_rows.grids import GRIDS
from demo_rows.objective_grids import OBJECTIVE_GRIDS
from demo_rows.openings import TEACHER, Opening, OpeningLog, from_right_bits, right_bits
from demo_rows.released import known_rows, released_rows, same_cost, why_not_released
from demo_rows.seeds_picture import seeds_figure
from demo_rows.settings import Setting
from demo_rows.trials import SEEDS, Trial, TrialLog, first_round
from demo_selection import table
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection

from alignkd.pipeline.demo import recipes
from alignkd.pipeline.demo.evaluate import load_questions, read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths
from alignkd.pipeline.demo.recipes import EVERYTHING, SUPERVISED_ONLY, Recipe
from alignkd.pipeline.demo.results.report import accuracies
from alignkd.pipeline.demo.results.table import markdown_table
from alignkd.pipeline.demo.results.table import table as accuracy_table
from alignkd.pipeline.demo.settings import FULL, QUICK
from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.vlm.errors import InputError

TINY = replace(
    QUICK, num_scenes=8, num_eval_scenes=6, development_scenes=4, shard_size=32, steps=2, micro_batch=4, teacher_batch=8
)
ROWS = (SUPERVISED_ONLY, EVERYTHING)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    """A few questions."""
    out = tmp_path_factory.mktemp("questions")
    return write_dataset(out, num_scenes=5, pool="development", seed=1, questions_per_scene=6, single_turn=True)


@settings(max_examples=25)
@given(data=st.data())
def test_right_bits_keep_what_is_right_and_nothing_else(questions: DatasetFiles, data: st.DataObject) -> None:
    asked = load_questions(questions.conversations)
    right = data.draw(st.lists(st.booleans(), min_size=len(asked), max_size=len(asked)))
    bits = "".join("1" if flag else "0" for flag in right).ljust(-(-len(asked) // 8) * 8, "0")
    by_hand = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)).hex()
    evaluation = from_right_bits(by_hand, load_questions(questions.conversations))
    assert [answer.right for answer in evaluation.answers] == right
    assert [answer.id for answer in evaluation.answers] == [sample.id for sample, _ in asked]
    assert right_bits(evaluation) == by_hand


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch, phases_prepared: None) -> Iterator[list[str]]:
    """What is trained and what is evaluated, in order."""
    seen: list[str] = []
    train, evaluate = demo_results.train_students, demo_results.evaluate_models

    def train_students(students: dict[StudentPaths, int], at_once: int) -> None:
        seen.extend(f"train {student.name}" for student in students)
        train(students, 1)

    def evaluate_models(folder: DemoFolder, students: list[StudentPaths], data: DatasetFiles) -> None:
        assert data == folder.test_set
        seen.extend(f"evaluate {student.name}" for student in students)
        evaluate(folder, students, data)

    monkeypatch.setattr(demo_results, "train_students", train_students)
    monkeypatch.setattr(demo_results, "evaluate_models", evaluate_models)
    yield seen


def test_rows_are_trained_and_then_opened_once(tmp_path: Path, order: list[str]) -> None:
    folder, log = DemoFolder(tmp_path / "out"), OpeningLog(tmp_path / "log.jsonl")
    evaluate_rows(folder, TINY, ROWS, log, at_once=1, seeds=(0, 1))
    names = [f"{row.name}-seed-{seed}" for row in ROWS for seed in (0, 1)]
    assert order == [f"{what} {name}" for what in ("train", "evaluate") for name in names]
    assert [(line["event"], line["row"]) for line in log.entries()] == [
        (event, row) for row in (TEACHER, "supervised", "align_kd") for event in ("opened", "evaluated")
    ]
    # the tables of the log are those of the answers
    evaluations = {row: [read_evaluation(folder.student(row.name, seed).evaluation) for seed in (0, 1)] for row in ROWS}
    report = accuracies(
        evaluations, read_evaluation(folder.teacher_evaluation), TINY, folder.training_set.conversations
    )
    found = read_report(ROWS, log, TINY)
    text = tables(found)
    assert markdown_table(accuracy_table(report)) in text
    assert "Settings with which a row was opened so far: supervised only 1, Align-KD 1." in text.replace("\n", " ")
    order.clear()
    evaluate_rows(folder, TINY, ROWS, log, at_once=1, seeds=(0, 1))
    assert order == []
    with pytest.raises(InputError, match=r"align_kd: was evaluated on .*log\.jsonl; it is opened only once"):
        log.open(Opening.of(EVERYTHING, TINY))
    # other settings are another row
    changed = replace(EVERYTHING, losses={**EVERYTHING.losses, "logit": 0.5})
    assert log.evaluated(Opening.of(changed, TINY)) is None
    log.open(Opening.of(changed, TINY))
    assert log.times_opened("align_kd") == 2 and log.times_opened("supervised") == 1
    with pytest.raises(InputError, match="no evaluation of align_kd with its present settings"):
        read_report((SUPERVISED_ONLY, changed), log, TINY)


@pytest.mark.parametrize("row", sorted(recipes.ROWS))
def test_every_row_in_the_log_is_found_again(tmp_path: Path, questions: DatasetFiles, row: str) -> None:
    """Numbers are keys in the settings of some rows, and texts in the log."""
    log, opening = OpeningLog(tmp_path / "log.jsonl"), Opening.of(recipes.ROWS[row], FULL)
    log.open(opening)
    log.close(
        opening, [from_right_bits("00" * 8, load_questions(questions.conversations))], questions, steps=1, seeds=[0]
    )
    assert log.evaluated(Opening.of(recipes.ROWS[row], FULL)) is not None
    with pytest.raises(InputError, match="it is opened only once"):
        log.open(opening)
    assert log.times_opened(row) == 1


@pytest.mark.parametrize("row", sorted(recipes.ROWS.keys() - GRIDS.keys()))
def test_a_row_without_a_grid_has_the_settings_of_one_with_a_grid(tmp_path: Path, row: str) -> None:
    recipe = recipes.ROWS[row]
    reason = why_not_released(recipe, TrialLog(tmp_path / "no trials"), FULL)
    assert reason is not None
    other = recipes.ROWS[reason.split(":")[0]]
    assert other.name in GRIDS and (recipe.train, recipe.steps) == (other.train, other.steps)


def test_a_line_that_a_killed_process_left_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    log = OpeningLog(tmp_path / "log.jsonl")
    log.append({"row": "a"})
    with log.path.open("a") as file:
        file.write('{"row": "b", "acc')
    before = log.path.read_bytes()
    with pytest.raises(InputError, match=r"log\.jsonl: line 2: expected a JSON object.*remove the line"):
        log.append({"row": "c"})
    assert log.path.read_bytes() == before


def test_answers_to_other_questions_are_not_taken(tmp_path: Path, questions: DatasetFiles) -> None:
    log, opening = OpeningLog(tmp_path / "log.jsonl"), Opening(TEACHER, {})
    everything_right = from_right_bits("ff" * 8, load_questions(questions.conversations))
    log.close(opening, [everything_right], questions, steps=0, seeds=[0])
    assert [answer.right for answer in log.evaluations(opening, questions)[0].answers] == [True] * len(
        everything_right.answers
    )
    other = DatasetFiles(conversations=tmp_path / "other.json", images=questions.images)
    other.conversations.write_text(questions.conversations.read_text() + "\n")
    with pytest.raises(InputError, match=r"teacher was evaluated on questions .*other\.json is"):
        log.evaluations(opening, other)


@pytest.fixture
def trials(tmp_path: Path) -> TrialLog:
    """Both rounds of the supervised row; the setting of the recipe is the best of them."""
    log = TrialLog(tmp_path / "trials.jsonl")
    for number, trial in enumerate(first_round("supervised")):
        for seed in SEEDS:
            one = replace(trial, seed=seed)
            best = one.config(FULL) == Trial(row="supervised", setting=Setting(name=""), seed=seed).config(FULL)
            log_trial(log, one, accuracy=0.9 if best else 0.1 + 0.01 * number, seconds=70.0)
    return log


def log_trial(log: TrialLog, trial: Trial, *, accuracy: float, seconds: float, commit: str = "a") -> None:
    entry = {"row": trial.row, "setting": trial.setting.name, "seed": trial.seed, "steps": 700}
    versions = {"commit": commit}
    log.append({**entry, "accuracy": accuracy, "seconds": seconds, "config": trial.config(FULL), "versions": versions})


def test_a_row_is_released_with_the_settings_of_its_selection(
    trials: TrialLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_released([SUPERVISED_ONLY], trials, FULL)
    with pytest.raises(InputError, match="align_kd: its selection has not ended"):
        check_released(ROWS, trials, FULL)
    other = replace(SUPERVISED_ONLY, train={"learning_rate": 0.5})
    monkeypatch.setitem(GRIDS, "supervised", replace(GRIDS["supervised"], recipe=other))
    reason = why_not_released(other, trials, FULL)
    assert reason is not None and "has chosen rate-0.004-decay-1; give the row these settings" in reason
    assert "supervised  700 steps  not released" in listed([other], OpeningLog(tmp_path / "none"), trials, FULL)[0]


def test_the_partner_of_the_same_cost(trials: TrialLog) -> None:
    """Supervised steps of 0.1 s; the fastest trial with the row's settings has 0.25 s, one of other settings 0.2 s."""
    assert same_cost(SUPERVISED_ONLY, trials, FULL) is None
    log_trial(trials, first_round("align_kd")[0], accuracy=0.5, seconds=140.0)
    assert same_cost(EVERYTHING, trials, FULL) is None
    for seed, seconds in zip(SEEDS, (630.0, 175.0, 190.0), strict=True):
        own = Trial(row="align_kd", setting=Setting(name="own"), seed=seed)
        log_trial(trials, own, accuracy=0.5, seconds=seconds)
    rows = released_rows(["align_kd"], trials, FULL)
    assert [row.name for row in rows] == ["supervised", "align_kd", "supervised.cost-of-align_kd"]
    partner: Recipe = rows[-1]
    assert (partner.steps, partner.partner, partner.losses) == (2.5, "align_kd", {})
    # the supervised row has the settings that its selection has chosen, and Align-KD's has not ended
    assert why_not_released(partner, trials, FULL) is None
    reason = why_not_released(partner, TrialLog(trials.path.with_name("no trials")), FULL)
    assert reason is not None and "supervised: its selection has not ended" in reason
    longer = same_cost(replace(EVERYTHING, steps=2.0), trials, FULL)
    assert longer is None  # no trial had these steps


def test_costs_are_compared_within_a_version(trials: TrialLog) -> None:
    own = Trial(row="align_kd", setting=Setting(name="own"), seed=SEEDS[0])
    plain = Trial(row="supervised", setting=Setting(name="plain"), seed=SEEDS[0])

    def steps() -> float:
        found = same_cost(EVERYTHING, trials, FULL)
        assert found is not None
        return found.steps

    log_trial(trials, own, accuracy=0.5, seconds=210.0)
    assert steps() == 3.0
    log_trial(trials, own, accuracy=0.5, seconds=70.0, commit="b")
    assert steps() == 3.0  # version b has no trial of the supervised student
    log_trial(trials, plain, accuracy=0.5, seconds=50.0, commit="b")
    assert steps() == 1.4
    log_trial(trials, plain, accuracy=0.5, seconds=7.0, commit="c")
    assert steps() == 1.4


def test_the_tables_are_put_between_their_marks(tmp_path: Path) -> None:
    document = "# Results\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nmore\n"
    once = between_marks(document, "figures", "| a |\n", tmp_path)
    assert once == "# Results\n\n<!-- figures -->\n\n| a |\n\n<!-- end of figures -->\n\nmore\n"
    assert between_marks(once, "figures", "| a |\n", tmp_path) == once
    with pytest.raises(InputError, match="has no lines <!-- figures -->"):
        between_marks("# Results\n", "figures", "| a |\n", tmp_path)


def test_every_document_has_its_marks() -> None:
    for name, documents in {
        demo_results.MARK: [demo_results.PAGE, demo_results.README],
        demo_results.OBJECTIVE_MARK: [demo_results.PAGE],
        demo_selection.MARK: [demo_selection.DOCUMENT],
    }.items():
        for document in documents:
            text = document.read_text(encoding="utf-8")
            assert "filled in" in between_marks(text, name, "filled in", document)


def test_the_documents_have_the_table_of_the_committed_trials() -> None:
    text = table(GRIDS, TrialLog(demo_selection.LOG), FULL)
    document = demo_selection.DOCUMENT.read_text(encoding="utf-8")
    assert between_marks(document, demo_selection.MARK, text, demo_selection.DOCUMENT) == document


def test_the_documents_have_the_tables_of_the_committed_openings() -> None:
    log, trial_log = OpeningLog(demo_results.LOG), TrialLog(demo_results.TRIALS)
    opened = opened_rows(released_rows(known_rows().split(","), trial_log, FULL), log, FULL)
    report = read_report(opened, log, FULL)
    for path, text in ((demo_results.PAGE, tables(report)), (demo_results.README, short_table(report))):
        document = path.read_text(encoding="utf-8")
        assert between_marks(document, demo_results.MARK, text, path) == document


def test_the_document_has_the_table_of_the_committed_openings_of_published_methods() -> None:
    log, trial_log = OpeningLog(demo_results.LOG), TrialLog(demo_results.TRIALS)
    opened = opened_rows(released_rows([*OBJECTIVE_GRIDS], trial_log, FULL), log, FULL)
    text = demo_results.NOTHING_OPENED
    if len(opened) > 1:  # beside the supervised row
        text = tables(read_report(opened, log, FULL, demo_results.OBJECTIVE_SEEDS))
    document = demo_results.PAGE.read_text(encoding="utf-8")
    assert between_marks(document, demo_results.OBJECTIVE_MARK, text, demo_results.PAGE) == document


def test_students_of_some_seeds_are_read(tmp_path: Path, questions: DatasetFiles) -> None:
    """A row of ten seeds is compared with rows of five by its first five."""
    log, opening = OpeningLog(tmp_path / "log.jsonl"), Opening.of(recipes.SUPERVISED_ONLY, FULL)
    asked = load_questions(questions.conversations)
    bits = [f"{number:02x}" * 8 for number in (255, 0, 15)]
    log.close(opening, [from_right_bits(one, asked) for one in bits], questions, steps=1, seeds=[3, 4, 5])
    found = log.evaluations(opening, questions, [5, 3])
    assert [evaluation.answers for evaluation in found] == [from_right_bits(bits[n], asked).answers for n in (2, 0)]
    assert len(log.evaluations(opening, questions)) == 3


def test_the_picture_has_a_point_per_seed() -> None:
    gap = {"estimate": 0.5, "low": 0.2, "high": 0.8}
    report = {
        "teacher": {"accuracy": 0.9},
        "majority": {"accuracy": 0.3},
        "students": {
            "supervised": {"label": "supervised only", "accuracy": [0.4, 0.5], "gap": None},
            "layers": {"label": "layers", "accuracy": [0.6, 0.7, 0.74], "gap": gap},
        },
    }
    (axis,) = seeds_figure(report).axes
    points = [np.asarray(group.get_offsets()) for group in axis.collections if isinstance(group, PathCollection)]
    expected = [[[40, 0], [50, 0]], [[60, 1], [70, 1], [74, 1]]]
    assert points == [pytest.approx(np.array(one)) for one in expected]
    texts = {text.get_text() for text in axis.texts}
    assert texts == {"45.0", "68.0, 50 % of the gap", "teacher 90.0", "most frequent answer 30.0"}


def test_the_committed_logs_fit_together() -> None:
    """Every evaluation of a row with a grid used settings that its committed selection had tried."""
    log, trial_log = OpeningLog(demo_results.LOG), TrialLog(demo_results.TRIALS)
    tried = [
        {**entry["config"], "train": {key: value for key, value in entry["config"]["train"].items() if key != "seed"}}
        for entry in trial_log.entries()
    ]
    for line in log.entries():
        if line["row"] in GRIDS:
            assert line["config"] in tried, json.dumps(line["config"])
