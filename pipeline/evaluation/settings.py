"""What an evaluation is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from alignkd.vlm.hardware.devices import DtypeName
from alignkd.vlm.settings import ProcessorKind


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Checkpoint, benchmarks and how the answers are generated.

    Attributes:
        checkpoint: folder or hub id.
        benchmarks: names, in the order in which they run.
        data: the folder that holds a folder per benchmark, or that of the only benchmark.
        out: folder of answers and scores.
        dtype: dtype of weights, pixels and logits; the original evaluates in float16.
        batch: largest number of prompts in a batch.
        device: torch device; None takes the GPU of this process, or the CPU.
        limit: ask only so many first questions of each benchmark; None for all.
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        processor: image processor of models of transformers; `pil` needs no torchvision.
        force: start again where OUT was made with other settings.
    """

    checkpoint: str
    benchmarks: tuple[str, ...]
    data: Path
    out: Path
    dtype: DtypeName = "float16"
    batch: int = 16
    device: str | None = None
    limit: int | None = None
    worker: str | None = None
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    force: bool = False


def model_name(checkpoint: str) -> str:
    """`model_id` of the answers file as the original's generators set it.

    The last part of the path; of a folder `checkpoint-N`, the last two.
    """
    *folders, last = checkpoint.strip("/").split("/")
    return f"{folders[-1]}_{last}" if folders and last.startswith("checkpoint-") else last
