"""The settings of a data set that decide how its entries are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignkd.vlm.data.source import Answers, DataSet
from alignkd.vlm.data.turn_checks import SPEAKERS
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EntryReading:
    """How the entries of a data set are read.

    Attributes:
        roles: name of a role in the data, in any case -> "human", "gpt" or "system". Goes before the known names.
        system: system prompt of entries that have none; None: none is added.
        images: the image folder. Absolute paths of images must lie in it; None: they are left as they are.
        answers: `missing`: a question may lack its answer; such a sample is for `alignkd generate` alone.

    Raises:
        InputError: `roles` leads to another speaker.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    images: Path | None = None
    answers: Answers = "given"

    def __post_init__(self) -> None:
        for role, speaker in self.roles.items():
            if speaker not in SPEAKERS:
                raise InputError(f"data.roles: {role!r} is {speaker!r}, expected one of {', '.join(SPEAKERS)}")
        object.__setattr__(self, "roles", {name.strip().lower(): speaker for name, speaker in self.roles.items()})

    @classmethod
    def of(cls, data: DataSet) -> "EntryReading":
        """The reading of a data set as its user describes it."""
        return cls(roles=data.roles, system=data.system, images=data.images, answers=data.answers)
