"""A short real training with each divergence on each kind of store that it accepts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Codecs, LogitsCodec
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
KINDS = {
    "full": LogitsCodec(kind="full", dtype="float32"),
    "hidden": LogitsCodec(kind="hidden", dtype="float32"),
    "nucleus": LogitsCodec(kind="nucleus", p=0.9, min_entries=12, max_entries=256, dtype="float32"),
}
LOSSES: list[dict[str, Any]] = [
    {"logit_divergence": "tvd"},
    {"logit_divergence": "cosine_probs"},
    {"logit_divergence": "ofa", "ofa_gamma": 1.5},
    {"logit_divergence": "akl"},
    {"logit_divergence": "bild"},
    {"logit_divergence": "bild", "bild": {"lead": "teacher"}},
    {"logit_divergence": "sinkhorn"},
    {"logit_divergence": "sinkhorn", "sinkhorn": {"temperature": 1.0, "positions": 4}},
]
# Those that are trained on full logits, too: one with its groups, one position by position.
IN_FULL = [{"logit_divergence": "tvd"}, {"logit_divergence": "sinkhorn"}]
ONLY_LOGITS: dict[str, Any] = {"attention": 0.0, "vision_all": 0.0, "vision_top": 0.0}


@pytest.fixture(scope="module")
def stores(dump: Any, many_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Ten samples without other targets, by the kind of logits."""
    folder = tmp_path_factory.mktemp("divergences")
    none = {"attention": "none", "vision_top": "none", "vision_all": "none"}
    return {
        kind: dump(folder / kind, many_samples, codecs=Codecs(**none, logits=logits)) for kind, logits in KINDS.items()
    }


@pytest.fixture
def losses_of_steps(make_job: MakeJob, read_metrics: Any, tmp_path: Path) -> Callable[..., list[float]]:
    """losses_of_steps(store, losses, ...): the logit loss of every step."""

    def run(store: Path, losses: dict[str, Any], **settings: Any) -> list[float]:
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        job = {"steps": 2, "micro_batch": 5, "global_batch": 10, **settings}
        train(make_job(store, output=output, losses={**ONLY_LOGITS, **losses}, **job))
        return [line["logit"] for line in read_metrics(output)]

    return run


@pytest.mark.parametrize("losses", LOSSES, ids=lambda losses: "-".join(map(str, losses.values())))
def test_training(losses: dict[str, Any], stores: dict[str, Path], losses_of_steps: Callable[..., list[float]]) -> None:
    """The loss falls on each kind; hidden states give what full logits give."""
    found = {
        kind: losses_of_steps(stores[kind], losses)
        for kind, codec in KINDS.items()
        if not LossConfig(**ONLY_LOGITS, **losses).problems_with(codec.kind, "the store")
        and (kind != "full" or losses in IN_FULL)
    }
    assert "hidden" in found
    for values in found.values():
        assert values[-1] < values[0]
    if losses in IN_FULL:
        assert found["hidden"] == pytest.approx(found["full"], rel=1e-4)


def test_micro_batches_and_chunks_give_the_same_sinkhorn_loss(
    stores: dict[str, Path], losses_of_steps: Callable[..., list[float]]
) -> None:
    losses = {"logit_divergence": "sinkhorn", "sinkhorn": {"positions": 3}}
    expected = losses_of_steps(stores["full"], losses)
    assert losses_of_steps(stores["full"], losses, micro_batch=1) == pytest.approx(expected, rel=1e-5)
    assert losses_of_steps(stores["full"], {**losses, "head_chunk_mib": 1}, micro_batch=2) == pytest.approx(
        expected, rel=1e-5
    )
    longer = {"logit_divergence": "sinkhorn", "sinkhorn": {"positions": 6}}
    assert losses_of_steps(stores["full"], longer) != pytest.approx(expected, rel=1e-5)
