"""Which family a checkpoint belongs to; a third family is one folder and its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkd.vlm import families
from alignkd.vlm.errors import InputError
from alignkd.vlm.families import open as opening
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.open import open_checkpoint

SUPPORT = Path(__file__).parents[2] / "support"


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


def test_mobilevlm_imports_no_other_family(golden: Path) -> None:
    code = (
        "import sys; from alignkd.vlm.families.open import open_checkpoint; from pathlib import Path\n"
        "model = open_checkpoint(sys.argv[1], vision_config=Path(sys.argv[2])).load_model()\n"
        "print([name for name in sys.modules if 'families.huggingface' in name])"
    )
    command = [sys.executable, "-c", code, str(golden / "teacher"), str(golden / "clip")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def third_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a family and its name: nothing else is added."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(SUPPORT / "toy_families")])
    monkeypatch.setattr(opening, "FAMILIES", ("toy", *opening.FAMILIES))


@pytest.mark.usefixtures("third_family")
def test_a_third_family_is_a_folder_and_its_name(golden: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(with_config(tmp_path / "toy", {"model_type": "toy", "width": 8}))
    assert opened.family == "toy" and opened.config.hidden_size == 8
    # the others stay what they are
    assert open_checkpoint(golden / "teacher").family == "mobilevlm"
