"""Settings of validation during training: which samples, how often, what follows from the figures."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.settings import Amount, Count, OneOf, Settings, UserLocation, UserPath

# Validations of a run for which the user sets no interval.
VALIDATIONS_PER_RUN = 10
LOSS = "loss"


class ValidationData(Settings):
    """Conversations of which no teacher has made targets.

    Attributes:
        conversations: as `data.conversations`.
        images: folder to which image paths are relative; None is `data.images`.
        roles, system: as `data.roles` and `data.system`.
        template: as `data.template`; None is the template of the run.
        max_tokens: samples with more embedded tokens are left out and counted; None sets no limit.
    """

    conversations: UserPath
    images: UserPath | None = None
    roles: dict[str, Literal["human", "gpt", "system"]] = Field(default_factory=dict, title="names of roles")
    system: str | None = None
    template: Literal["plain", "v1"] | None = None
    max_tokens: Count | None = 2048

    def data_set(self, images: Path | None) -> DataSet:
        """The data set; `images` is the folder of a run's own images."""
        return DataSet(path=self.conversations, images=self.images or images, roles=self.roles, system=self.system)


class ValidationConfig(Settings):
    """Losses of samples that are not trained on. Exactly one of `share`, `store` and `data` is given.

    Attributes:
        share: share of the run's own samples that is held out of training. The hash of a sample's key decides, so
            equal samples are all held out or all trained on.
        store: another store of the same teacher with the same kinds of targets.
        images: image folder of `store`; None is `data.images`.
        data: conversations without targets; only the terms that need no teacher are computed.
        every: optimiser steps between validations; None is a tenth of the run. The last step is always validated.
        at_start: validate also before the first step. The best state is chosen among later ones.
        max_samples: validate a fixed subset of at most so many samples; None takes all.
        micro_batch: samples per forward pass and device; None is `train.micro_batch` or `train.token_budget`. In a
            token budget, samples of `data` count as `max_tokens` long, because their lengths are not known before.
        figure: the figure whose lowest value is the best: `loss` or a term. None is `loss`, or `supervised` for `data`.
        patience: end training after so many validations in a row without improvement; None never ends it.
        min_delta: smallest decrease of the figure that counts as an improvement for `patience`.
        export: which state becomes `OUTPUT/student`: that of the `best` validation, or the `last`.
    """

    share: float | None = Field(default=None, gt=0, lt=1)
    store: UserLocation | None = None
    images: UserPath | None = None
    data: ValidationData | None = None
    every: Count | None = None
    at_start: bool = True
    max_samples: Count | None = None
    micro_batch: Count | None = None
    figure: Annotated[str, AfterValidator(OneOf(LOSS, *TERMS))] | None = None
    patience: Count | None = None
    min_delta: Amount = 0.0
    export: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _samples_are_given_once(self) -> Self:
        given = [name for name in ("share", "store", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of share, store and data, found {' and '.join(given) or 'none'}")
        if self.images is not None and self.store is None:
            raise ValueError("images is the image folder of store, but store is not given; leave images out")
        if self.data is not None and self.figure not in (None, LOSS, *terms_without_teacher()):
            raise ValueError(
                f"figure is {self.figure!r}, but data has no target of a teacher; choose {LOSS} or one of "
                f"{', '.join(terms_without_teacher())}"
            )
        return self

    @property
    def chosen_figure(self) -> str:
        """`figure` with its default filled in."""
        if self.figure is not None:
            return self.figure
        return LOSS if self.data is None else "supervised"

    def interval(self, steps: int) -> int:
        """Optimiser steps between validations of a run that does so many steps."""
        return self.every or math.ceil(steps / VALIDATIONS_PER_RUN)

    def is_due(self, step: int, steps: int, *, first_step: int = 0) -> bool:
        """Whether the state after `step` of `steps` optimiser steps is validated.

        Args:
            first_step: steps before the run, if it extends another one.
        """
        if step == first_step:
            return self.at_start
        return step == steps or step % self.interval(steps - first_step) == 0

    def validations(self, steps: int) -> int:
        """Number of validations of a run that does so many steps."""
        return self.at_start + math.ceil(steps / self.interval(steps))


def terms_without_teacher() -> list[str]:
    """The terms that need no target of a teacher."""
    return [name for name, term in TERMS.items() if term.target is None]
