"""The section `generate` of the configuration: which questions the teacher answers, and how."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkd.vlm.settings import Count, CountFromZero, Settings, UserPath

# values of these keys that greedy decoding cannot follow
_OF_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "samples_per_question": 1}


class GenerateConfig(Settings):
    """The answers that the teacher writes, and where.

    Attributes:
        output: folder of the answers; created, or resumed if its `generation.json` is the same.
        answers: `missing` answers the questions that have no answer and keeps all others; `all` answers every question
            anew.
        max_new_tokens: longest answer in tokens; a longer one is cut and marked as not finished.
        sampling: `greedy` takes the most likely token each time, `sample` draws it.
        temperature: the logits are divided by it before a token is drawn.
        top_p: tokens are drawn from the smallest set of most likely tokens whose probability reaches this mass.
        seed: seed of the draws. What is drawn depends on the seed and the place of the token in the data alone.
        samples_per_question: entries that are written per sample, each with answers of its own.
        shard_size: samples per file of answers.
        on_error: `quarantine` lists an unusable sample in the report of its shard and continues; `stop` ends the run.
        max_errors: a run with more unusable samples stops, each of several workers by its own count; None for no
            limit.
    """

    output: UserPath
    answers: Literal["missing", "all"] = "missing"
    max_new_tokens: Count = 256
    sampling: Literal["greedy", "sample"] = "greedy"
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**64)
    samples_per_question: Count = 1
    shard_size: Count = 256
    on_error: Literal["quarantine", "stop"] = "quarantine"
    max_errors: CountFromZero | None = None

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if self.sampling == "greedy":
            for key, neutral in _OF_SAMPLING.items():
                if (found := getattr(self, key)) != neutral:
                    raise ValueError(
                        f"{key} is {found}, but sampling is 'greedy'; set sampling to sample, or leave it out"
                    )
        return self

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the answers."""
        keys = {"answers", "max_new_tokens", "sampling", "temperature", "top_p", "seed", "samples_per_question"}
        return self.model_dump(mode="json", include=keys)
