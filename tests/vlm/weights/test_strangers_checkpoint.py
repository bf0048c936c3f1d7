"""A stranger's checkpoint: no code in it runs, whatever its files ask for."""

import contextlib
import json
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.inputs.processor import load_processor
from alignkd.vlm.families.open import open_checkpoint

CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Evil: pass\n"
MAP = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor"), "evil.Evil")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder whose every file asks for classes of `evil.py`, which would leave the file `ran`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(marker=str(tmp_path / "ran")), encoding="utf-8")
    names = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    for name in names:
        (folder / name).write_text(json.dumps({"model_type": "evil", "auto_map": MAP}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("model_type", ["evil", "qwen2_vl", "llava"])
def test_classes_that_come_with_a_checkpoint_are_not_used(checkpoint: Path, model_type: str) -> None:
    config = {"model_type": model_type, "architectures": ["Evil"], "auto_map": MAP}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for use in (lambda found: found.config, lambda found: found.load_model()):
        with contextlib.suppress(InputError):  # a class of transformers' own may read what else is in the file
            use(open_checkpoint(str(checkpoint)))
    with pytest.raises(InputError):
        load_processor(checkpoint, "auto")
    assert not (checkpoint.parent / "ran").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.clear() }}",
        "{% for n in range(1000000) %}{% endfor %}",
    ],
)
def test_chat_templates_run_in_a_sandbox(template: str) -> None:
    """That of transformers, by which alone templates are rendered; its limits are those of jinja2."""
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=template)
    with pytest.raises((jinja2.exceptions.SecurityError, OverflowError, jinja2.exceptions.UndefinedError)):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
