"""A record as the inputs of a model, made as training makes them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from alignkd.pipeline.config.checkpoint_config import vision_config_of
from alignkd.storage.read.store import StoreReader
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.settings import ProcessorKind


def opened(place: Path | str, *, vision_config: Path | None, processor: ProcessorKind) -> Checkpoint:
    """A checkpoint, without its weights.

    Args:
        place: folder or hub id.
        vision_config: folder with the vision tower's `config.json`; None: that of the run that exported the
            checkpoint, else the checkpoint's own.
        processor: which image processor, see `CheckpointFolder`.

    Raises:
        InputError: no such checkpoint.
    """
    vision_config = vision_config or vision_config_of(place)
    return open_checkpoint(place, vision_config=vision_config, processor=processor)


def preparation_of_store(reader: StoreReader, checkpoint: Checkpoint) -> Preparation:
    """Tokenizer, template and image processor of a checkpoint, if they are those of the store's teacher.

    The template is that of the store where the checkpoint's family has several.

    Raises:
        InputError: one line with each part that differs and both values.
    """
    stored = reader.manifest.fingerprint
    found = checkpoint.preparation()
    wanted = stored.get("template", found.template_fingerprint)
    if found.template_fingerprint != wanted:
        with suppress(InputError):  # the family has no such template: the difference is named below
            found = checkpoint.preparation(wanted.partition(":")[0])
    differing = [
        f"{name} is {stored.get(name, 'not recorded')[:64]} in the store, {value[:64]} there"
        for name, value in _compared(reader, found).items()
        if stored.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{checkpoint.name}: reads samples otherwise than the teacher of store {reader.path}: "
            f"{'; '.join(differing)}; give a checkpoint with the teacher's tokenizer and processor"
        )
    return found


def _compared(reader: StoreReader, preparation: Preparation) -> Mapping[str, str]:
    """The parts that must be equal: without those of images if their numbers of tokens differ."""
    own = preparation.fingerprint
    if own.get("vision_tokens") == reader.manifest.fingerprint.get("vision_tokens"):
        return own
    return {name: value for name, value in own.items() if name not in ("vision_tokens", "image_processor")}
