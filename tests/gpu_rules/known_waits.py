"""Every moment at which the host waits for the device, as far as known: where, how often at most, and why.

A wait that is not listed fails the checks, as does a line here that is never met. A wait costs what the device could
have had queued meanwhile: nothing at the end of a step, much in the middle of a forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from places import OUTSIDE
from pretend_device import Wait


@dataclass(frozen=True)
class Known:
    """Waits of one function.

    Attributes:
        file, function: of the project; `OUTSIDE` in the backward pass of torch's own operations.
        reason: as the rules name it.
        most: times per unit (a micro-batch, a step, a batch of the teacher); None for as many as there are tensors.
        why: it is there.
        via: beginning of the library's path, where the project called one.
    """

    file: str
    function: str
    reason: str
    most: int | None
    why: str
    via: str = ""

    def is_of(self, wait: Wait) -> bool:
        """Whether it is this wait; the line does not matter."""
        place = wait.place
        return (self.file, self.function, self.reason) == (place.file, place.function, wait.reason) and (
            place.via.startswith(self.via) if self.via else not place.via
        )


def unknown(waits: Mapping[Wait, int], known: Sequence[Known], units: int) -> list[str]:
    """What is not listed, or happens more often than listed, each with file and line."""
    found = []
    for entry in known:
        own = {wait: count for wait, count in waits.items() if entry.is_of(wait)}
        if entry.most is not None and sum(own.values()) > entry.most * units:
            lines = ", ".join(map(str, own))
            found.append(f"{sum(own.values())} waits in {units} units, listed are {entry.most} each: {lines}")
    listed = [wait for wait in waits if any(entry.is_of(wait) for entry in known)]
    return found + [f"{count} waits that are not listed: {wait}" for wait, count in waits.items() if wait not in listed]


def unmet(waits: Mapping[Wait, int], known: Sequence[Known]) -> list[Known]:
    """Lines that name no wait that was seen."""
    return [entry for entry in known if not any(entry.is_of(wait) for wait in waits)]


# A micro-batch of MobileVLM and a batch of its teacher: forward and backward pass wait for nothing.
MICRO_BATCH: list[Known] = []
TEACHER_BATCH: list[Known] = []
# Of a micro-batch with images where `vision_matching` is `hungarian`.
MATCHING = [
    Known(
        "student_train/objective/vision/pairs.py",
        "match_vision_tokens",
        "to the host",
        1,
        "distances of vision tokens, which the host matches",
    ),
]
# Of models of transformers, without what transformers waits for.
FAMILY_MICRO_BATCH = [
    Known(OUTSIDE, "", "boolean index", 6, "transformers adds features of the tower to hidden states of early layers"),
    Known(OUTSIDE, "", "masked_scatter_backward", 1, "transformers splices vision embeddings by a mask"),
]
ONE_DEVICE, ZERO = "student_train/engine/one_device/engine.py", "student_train/engine/zero/engine.py"
DEEPSPEED = "deepspeed/runtime/"
LOGGED = [
    Known("student_train/objective/tally.py", "_all_totals", "tolist", 1, "loss terms, for the log"),
]
STEP = [
    Known(ONE_DEVICE, "_end_micro_batch", "_local_scalar_dense", 1, "gradient norm, which decides on the step"),
    *LOGGED,
]
STEP_OF_DEEPSPEED = [
    Known(ZERO, "_end_micro_batch", "numbers to the device", 3, "gradient norm", via=DEEPSPEED),
    Known(ZERO, "_end_micro_batch", "_local_scalar_dense", 4, "gradient norm", via=DEEPSPEED),
    Known(ZERO, "_end_micro_batch", "_local_scalar_dense", 1, "gradient norm, for the log"),
    *LOGGED,
]
AROUND = [
    Known("student_train/trainer.py", "_prepare_engine", "to the device", None, "the student, before the first step"),
    Known("vlm/finite.py", "is_finite", "_local_scalar_dense", None, "weights that are exported are looked at once"),
    Known("student_train/checkpoints/export.py", "trained_adapters", "to the host", None, "the adapters"),
    Known("vlm/families/mobilevlm/weights/writer.py", "write_weights", "to the host", None, "the exported student"),
]
ADAM_STEP = Known(
    "student_train/engine/optimizers/moments.py", "num_steps", "_local_scalar_dense", None, "a checkpoint"
)
LEVELS = Known(
    "student_train/engine/optimizers/adamw_8bit.py", "_levels", "to the device", None, "once, before the first step"
)
CHECKPOINT, CHECKPOINT_OF_DEEPSPEED = (
    [
        Known(engine, "master_weights", "to the host", None, "a checkpoint, and the export"),
        Known(engine, "moments", "to the host", None, "a checkpoint"),
    ]
    for engine in (ONE_DEVICE, ZERO)
)
LOADING = [
    Known("vlm/finite.py", "is_finite", "_local_scalar_dense", None, "weights that are not finite are refused"),
    Known("vlm/families/mobilevlm/weights/loading.py", "_read", "to the device", None, "the teacher's weights"),
    Known(
        "vlm/families/mobilevlm/weights/loading.py",
        "_materialise_buffers",
        "to the device",
        None,
        "the teacher's buffers",
    ),
]
SANITY = [
    Known("teacher_dump/sanity.py", "_label_scores", "to the device", None, "a sample's labels"),
    Known("teacher_dump/sanity.py", "_label_scores", "to the host", None, "log-probabilities of a sample's labels"),
    Known("teacher_dump/sanity.py", "batch", "_local_scalar_dense", None, "differences of hidden states"),
]
