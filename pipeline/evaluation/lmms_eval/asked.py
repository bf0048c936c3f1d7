"""One request of lmms-eval as a question, and what its generation settings mean here."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError

# what models of lmms-eval take where a task sets no limit
DEFAULT_MAX_NEW_TOKENS = 1024
# without effect on greedy generation
_WITHOUT_EFFECT = frozenset({"temperature", "top_p", "top_k", "use_cache"})
_READ = frozenset({"max_new_tokens", "until", "do_sample", "num_beams"})


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How long an answer may be, and where it ends.

    Attributes:
        max_new_tokens: largest number of generated tokens.
        until: the answer ends before the first of these texts in it.
        ignored: names of settings that alignkd does not know.
    """

    max_new_tokens: int
    until: tuple[str, ...]
    ignored: tuple[str, ...]

    @classmethod
    def read(cls, values: Mapping[str, Any], task: str) -> "GenerationSettings":
        """The `generation_kwargs` of a task.

        Raises:
            InputError: sampling, several beams, or a value of the wrong type.
        """
        if _samples(values):
            raise InputError(
                f"task {task}: do_sample={values.get('do_sample')!r} and temperature={values.get('temperature')!r} "
                "ask for sampling, but alignkd answers greedily; give --gen_kwargs do_sample=False,temperature=0"
            )
        if (beams := values.get("num_beams")) not in (None, 1):
            raise InputError(f"task {task}: num_beams is {beams!r}, alignkd takes 1; give --gen_kwargs num_beams=1")
        limit = values.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InputError(
                f"task {task}: max_new_tokens is {limit!r}, not a number from 1; give --gen_kwargs max_new_tokens=128"
            )
        ignored = sorted(set(values) - _READ - _WITHOUT_EFFECT)
        return cls(max_new_tokens=limit, until=_until(values.get("until"), task), ignored=tuple(ignored))

    def cut(self, text: str) -> str:
        """`text` up to the first of `until`, without outer white space."""
        ends = [text.find(end) for end in self.until if end in text]
        return text[: min(ends, default=len(text))].strip()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of lmms-eval.

    Attributes:
        name: task and number of the document, for messages.
        context: the text, with or without `<image>`.
        images: what the task shows with it.
    """

    name: str
    context: str
    images: Sequence[Image.Image]
    settings: GenerationSettings

    def sample(self, index: int) -> Sample:
        """The request as a sample without an answer.

        Images come before the text where it does not place them, as in the models of LLaVA in lmms-eval.
        """
        text = self.context
        if self.images and IMAGE_PLACEHOLDER not in text:
            text = " ".join([IMAGE_PLACEHOLDER] * len(self.images)) + "\n" + text
        return Sample(
            index=index,
            id=self.name,
            images=tuple(f"image {number} of {self.name}" for number in range(1, len(self.images) + 1)),
            contents=tuple(_file(image) for image in self.images),
            turns=(Turn("human", text),),
        )


def images_of(visuals: object, name: str) -> list[Image.Image]:
    """What `doc_to_visual` of a task returned, as images.

    Raises:
        InputError: a video, a sound, or the path of a file.
    """
    images: list[Image.Image] = []
    for one in [] if visuals is None else visuals if isinstance(visuals, list | tuple) else [visuals]:
        if not isinstance(one, Image.Image):
            raise InputError(
                f"{name}: a {type(one).__name__} where an image is expected; alignkd answers questions about images, "
                "choose a task without videos and sounds"
            )
        images.append(one)
    return images


def _file(image: Image.Image) -> bytes:
    """The pixels as a PNG file, which is what a preparation takes."""
    buffer = io.BytesIO()
    # a new image: the metadata of the other one may not fit into a PNG file
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    plain.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _samples(values: Mapping[str, Any]) -> bool:
    """Whether settings ask for sampling; a temperature alone does, as in the models of lmms-eval."""
    temperature = values.get("temperature")
    does = values.get("do_sample")
    if does is None:
        return bool(temperature)
    return bool(does) and temperature != 0


def _until(value: object, task: str) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value or []
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise InputError(f"task {task}: until is {value!r}, not a text or a list of texts; correct the task")
    return tuple(one for one in given if one)
