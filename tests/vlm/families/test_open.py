"""Which family a checkpoint belongs to; a third family is one folder and its name."""

import json
from pathlib import Path

import pytest
import torch
import toy_family
from prepared_processes import PreparedProcesses

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.generation import generate_greedy, stream_greedy
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences


def with_config(folder: Path, raw: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_mobilevlm_is_recognised_by_its_keys(golden: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(golden / "teacher", vision_config=golden / "clip")
    assert isinstance(opened, MobileVLMCheckpoint) and opened.family == "mobilevlm"
    assert opened.fingerprint == MobileVLMCheckpoint.open(golden / "teacher").fingerprint
    assert opened.config.vision_tokens == 144 and opened.preparation().template == "v1"
    for number, raw in enumerate(
        ({"model_type": "llava", "mm_vision_tower": "x"}, {"model_type": "mobilevlm"}, {"mm_projector_type": "linear"})
    ):
        assert isinstance(open_checkpoint(with_config(tmp_path / str(number), raw)), MobileVLMCheckpoint)


def test_a_template_that_mobilevlm_has_not_is_refused(golden: Path) -> None:
    opened = open_checkpoint(golden / "teacher", vision_config=golden / "clip")
    assert opened.preparation("plain").fingerprint["template"] == "plain:1"
    with pytest.raises(InputError, match=r"template 'v2', but a MobileVLM checkpoint takes plain or v1; set data\.tem"):
        opened.preparation("v2")


def test_configurations_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json: a JSON list, expected a model's configuration"):
        open_checkpoint(with_config(tmp_path / "list", [1]))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none/config\.json"):
        open_checkpoint(tmp_path / "none")


def test_mobilevlm_imports_no_other_family(
    golden: Path, prepared_libraries: PreparedProcesses, patience: float
) -> None:
    code = (
        "import sys; from alignkd.vlm.families.open import open_checkpoint; from pathlib import Path\n"
        "model = open_checkpoint(sys.argv[1], vision_config=Path(sys.argv[2])).load_model()\n"
        "print([name for name in sys.modules if 'families.huggingface' in name])"
    )
    child = prepared_libraries.start("-c", code, golden / "teacher", golden / "clip")
    output, errors = child.communicate(patience)
    assert child.returncode == 0, errors
    assert output.strip() == "[]"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of a family whose folder and name are all that is added."""
    toy_family.register(monkeypatch)
    from alignkd.vlm.families.toy.checkpoint import write_toy  # type: ignore[import-not-found]

    folder: Path = write_toy(tmp_path / "toy", hidden_size=8, num_heads=2, seed=0)
    return folder


def test_a_third_family_is_a_folder_and_its_name(golden: Path, toy: Path, golden_images: Path) -> None:
    opened = open_checkpoint(toy)
    assert opened.family == "toy" and opened.config.hidden_size == 8
    assert open_checkpoint(golden / "teacher").family == "mobilevlm"  # the others stay what they are

    preparation, model = opened.preparation(), opened.load_model()
    files = [(golden_images / name).read_bytes() for name in ("coffee.png", "rocket.jpg")]
    examples = [
        preparation.build([Turn("human", "<image> what?"), Turn("gpt", "a cup")], files[:1]),
        preparation.build([Turn("human", "no image"), Turn("gpt", "indeed")], ()),
        preparation.build([Turn("human", "<image> and <image>?"), Turn("gpt", "both")], files),
    ]
    with torch.no_grad():
        batch = collate_sequences(examples)
        together = model.hidden_states(batch, model.encode_images(batch.images))
        for row, example in enumerate(examples):
            single = collate_sequences([example])
            vision = model.encode_images(single.images) if single.images else None
            with model.watched_first_layer() as first:
                alone = model.hidden_states(single, vision)[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-6)
            every = torch.arange(len(alone))[None]
            torch.testing.assert_close(
                first.attention(every, every).sum(-1), torch.ones(1, 2, len(alone)), rtol=1e-5, atol=1e-6
            )
    questions = [preparation.build_question([Turn("human", "<image>?")], files[:1])] * 2
    first_answer, second = generate_greedy(model, questions, max_new_tokens=4, stop_ids=preparation.stop_ids)
    assert (
        first_answer
        == second
        == list(stream_greedy(model, questions[0], max_new_tokens=4, stop_ids=preparation.stop_ids))
    )
