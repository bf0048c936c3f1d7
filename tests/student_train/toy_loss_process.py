"""Puts the toy losses into the table, as an edit of `objective/terms.py` would, before settings are made from it.

Arguments: the job as JSON, with weights of the toy losses. Trains, then runs
`alignkd report`. Prints the report, and before it one line: the value of `vision_l1` that the first step must have.
"""

import json
import sys
from typing import Any

import torch
from toy_losses import ENTRIES

from alignkd.student_train.objective.terms import TERMS

TERMS.update(ENTRIES)

from child_process import job_of  # noqa: E402

from alignkd.pipeline.cli import main as alignkd  # noqa: E402
from alignkd.student_train.distributed.ranks import start_ranks  # noqa: E402
from alignkd.student_train.job import TrainJob  # noqa: E402
from alignkd.student_train.run.plan import plan_run  # noqa: E402
from alignkd.student_train.run.student import build_student  # noqa: E402
from alignkd.student_train.trainer import train  # noqa: E402


def main(job_json: str) -> None:
    torch.set_num_threads(1)
    job = job_of(json.loads(job_json))
    result = train(job)
    assert not result.already_finished
    print(first_value(job), flush=True)
    alignkd(["report", str(job.train.output), "--smooth", "50"])


@torch.no_grad()
def first_value(job: TrainJob) -> float:
    """Mean absolute error of the first global batch, computed here from the untrained student."""
    plan = plan_run(job, start_ranks())
    batch = next(iter(plan.micro_batches(first_step=0)))
    student: Any = build_student(job, plan.student, plan.reader)
    assert batch.vision_all_PD is not None
    adapted = student.adapters.adapt_vision(batch.vision_all_PD.decode())
    found = student.model.encode_images(batch.sequences.images).embeddings_PD
    return float((adapted - found).abs().double().mean())


if __name__ == "__main__":
    main(sys.argv[1])
