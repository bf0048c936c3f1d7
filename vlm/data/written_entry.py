"""A sample as an entry of JSON, in one of two dialects."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn

Dialect = Literal["llava", "messages"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant", "system": "system"}


def written_entry(sample: Sample, images: Sequence[str], dialect: Dialect) -> dict[str, Any]:
    """The entry of a usable sample, or of one that lacks only answers.

    Args:
        images: path of each image, relative to the image folder.
    """
    if dialect == "llava":
        named = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
        turns = [{"from": turn.speaker, "value": turn.value} | _marks(turn) for turn in sample.turns]
        return {"id": sample.id, **named, "conversations": turns}
    turns = [{"role": _ROLES[turn.speaker], "content": turn.value} | _marks(turn) for turn in sample.turns]
    return {"id": sample.id, **({"images": list(images)} if images else {}), "messages": turns}


def _marks(turn: Turn) -> dict[str, Any]:
    if turn.speaker != "gpt":
        return {}
    mask = {} if turn.trained else {"loss": False}
    return mask if turn.generated is None else mask | {"generated": turn.generated.to_json()}
