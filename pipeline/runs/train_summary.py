"""What `alignkd train` says at the end."""

from alignkd.student_train.job import TrainResult

SHOWN = {
    "one_image": "with one image",
    "several_images": "with several images",
    "text_only": "text only",
    "unsupervised": "without a supervised token",
}


def summary(result: TrainResult) -> str:
    """A few lines on how a run ended; nothing that was left out goes unsaid."""
    if result.already_finished:
        return f"nothing left to do: {result.step} steps are done, student in {result.student}"
    if result.interrupted_by is not None:
        return f"alignkd: stopped at step {result.step}; run the same command again to go on"
    kinds = ", ".join(f"{result.samples_by_kind[kind]} {words}" for kind, words in SHOWN.items())
    applied = result.step - result.skipped_steps
    steps = f"{applied} of {result.step} steps" if result.skipped_steps else f"{applied} steps"
    lines = [f"trained {steps} on {result.samples_seen} samples ({kinds}); student in {result.student}"]
    if result.skipped_steps:
        lines.append(f"skipped: {result.skipped_steps} steps whose loss or gradient was not finite")
    if result.quarantined:
        lines.append(f"not trained on: {result.quarantined} samples that the teacher pass had quarantined")
    return "\n".join(lines)
