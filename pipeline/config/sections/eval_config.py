"""The section `eval` of the configuration: the benchmarks at the end of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from alignkd.evaluation.folder import LAYOUTS
from alignkd.pipeline.config.eval_place import DEFAULT_FOLDER, EVALUATED, EvaluatedModel
from alignkd.vlm.hardware.devices import DtypeName
from alignkd.vlm.settings import COMPLETE, CheckpointName, Count, Settings, UserPath, described


def _benchmark_names(value: Any) -> Any:
    """A list of names, or one text with commas between them."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise _problem(f"expected a list of {', '.join(LAYOUTS)}, found {described(value)}")
    for name in names:
        if not isinstance(name, str) or name not in LAYOUTS:
            raise _problem(f"expected names of {', '.join(LAYOUTS)}, found {described(name)}")
    return tuple(dict.fromkeys(names))


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError(COMPLETE, "{problem}", {"problem": text})


BenchmarkNames = Annotated[tuple[str, ...], BeforeValidator(_benchmark_names), Field(title="list of names")]


class EvalConfig(Settings):
    """The evaluation of the trained student, as `alignkd eval` does it.

    Attributes:
        data: folder that holds a folder per benchmark (docs/evaluation.md), or the folder of the only benchmark.
        benchmarks: names, in the order in which they run: `gqa`, `sqa`, `textvqa`, `mme`, `mmbench`, `pope`; None takes
            all of them.
        baseline: checkpoint of a student that was trained without distillation, which is evaluated too; or None.
        teacher: whether the teacher is evaluated too, without quantisation.
        out: folder of answers and scores, with a folder per model; None is `eval` in `train.output`.
        dtype: dtype of weights, pixels and logits; the paper's is float16.
        batch: largest number of prompts in a batch.
        limit: ask only so many first questions of each benchmark, which gives no number of the benchmark; None for all.
        device: torch device; None selects a GPU if there is one.
    """

    data: UserPath
    benchmarks: BenchmarkNames | None = None
    baseline: CheckpointName | None = None
    teacher: bool = False
    out: UserPath | None = None
    dtype: DtypeName = "float16"
    batch: int = Field(default=16, ge=1, le=128)
    limit: Count | None = None
    device: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks."""
        return tuple(LAYOUTS) if self.benchmarks is None else self.benchmarks

    @property
    def models(self) -> tuple[EvaluatedModel, ...]:
        """The models that are evaluated, in their order."""
        chosen = {"student": True, "baseline": self.baseline is not None, "teacher": self.teacher}
        return tuple(model for model in EVALUATED if chosen[model])

    def folder(self, output: Path) -> Path:
        """The folder of answers and scores of a run with the output folder `output`."""
        return output / DEFAULT_FOLDER if self.out is None else self.out
