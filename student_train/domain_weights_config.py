"""Settings of domain weights that follow the student during training."""

from typing import Any, Literal

from pydantic import Field, model_validator

from alignkd.vlm.settings import Count, Positive, Settings

DomainMethod = Literal["ddk"]


class DomainWeights(Settings):
    """Weights of the domains of a run, measured again and again. A domain is a data set of a store.

    Attributes:
        method: `ddk` (arXiv 2407.16154): a domain in which the student's perplexity of held-out labels is far above the
            teacher's gets a larger share of the samples.
        alpha: share of the measured factors in the weights; the rest is equal for all domains.
        interval: optimiser steps between two measurements.
        temperature: divides the ratios of the perplexities; larger values make the weights more equal.
        samples: most samples of a domain that measure it. They are held out of training, and are at most a tenth of the
            domain, but one.
    """

    method: DomainMethod = "ddk"
    alpha: float = Field(default=0.5, ge=0, le=1)
    interval: Count = 1000
    temperature: Positive = 1.0
    samples: Count = 500

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        """The name of a method is the section with its defaults."""
        return {"method": values} if isinstance(values, str) else values

    def measured_of(self, number: int) -> int:
        """How many of the samples of a domain measure it."""
        return max(1, min(self.samples, number // 10))
