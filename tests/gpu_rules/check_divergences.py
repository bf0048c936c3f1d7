"""The divergences of the logit loss: the CPU's numbers, no wait, and nothing that torch cannot repeat."""

from typing import Any

import pytest
from check_training import BOUNDS, ONE, differences, one_micro_batch
from golden_jobs import GoldenJobs
from known_waits import MICRO_BATCH, unknown
from pretend_device import LOG

CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"logit_divergence": name}) for kind in ("full", "compact") for name in ("cosine_probs", "ofa", "akl")),
    ("full", {"logit_divergence": "bild"}),
    ("compact", {"logit_divergence": "bild", "bild": {"lead": "teacher"}}),
    ("full", {"logit_divergence": "sinkhorn"}),
    ("compact", {"logit_divergence": "sinkhorn", "sinkhorn": {"temperature": 1.0, "positions": 5}}),
    *((kind, {"logit_divergence": "taid"}) for kind in ("full", "exact")),
    ("compact", {"logit_divergence": "taid", "taid": {"form": "bucketed"}}),
]


IDS = [f"{kind}-{losses['logit_divergence']}" for kind, losses in CASES]


@pytest.mark.parametrize(("kind", "losses"), CASES, ids=IDS)
def test_divergences_are_the_cpus(kind: str, losses: dict[str, Any], jobs: GoldenJobs) -> None:
    here, there = one_micro_batch(jobs.train_job(kind, "never", losses=losses), ONE)
    terms, gradients = differences(here, there)
    of_terms, of_gradients = BOUNDS["float32"]
    assert terms <= of_terms and gradients <= of_gradients
    assert not LOG.unrepeatable, "train.deterministic could not be used"
    waits = unknown(there.waits, MICRO_BATCH, 1)
    assert not waits, "\n".join(waits)
