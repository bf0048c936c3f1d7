"""Checks before a long run: does the teacher use its images, are labels aligned, does batching change the result?

A teacher that ignores its images (a projector that was not loaded, images of other samples) writes a store that looks
normal. The first samples of the plan are enough to detect it; `sanity_report.py` has the criteria.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.schema.targets.counterfactual import ADVANTAGE
from alignkd.storage.tools.verify.advantage import advantage_rounding
from alignkd.teacher_dump.bucketing import length_buckets
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.sanity_report import (
    MIN_IMAGES,
    SampleScores,
    SanityFinding,
    finding,
    judge_advantage,
    judge_images,
    judge_labels,
    judge_shuffled,
)
from alignkd.teacher_dump.targets.capture import Capture, Captured
from alignkd.teacher_dump.targets.logits.distribution import POSITIONS_AT_ONCE
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory
from alignkd.vlm.inputs.labels import IGNORE_LABEL

T = TypeVar("T")
SAMPLES_AT_ONCE = 64
MAX_SAMPLES = 256
ENOUGH_IMAGES = 64
# relative L2 error of hidden states, a batch against one sample at a time
ROUNDING = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1}
ROUNDING_QUANTIZED = 0.25
COMPARED = 4


class _Checks:
    def __init__(self, model: VisionLanguageModel, job: DumpJob) -> None:
        self.model, self.job = model, job
        self.capture = Capture(model, job.store)

    def scores(self, samples: Sequence[Prepared]) -> list[SampleScores | None]:
        """The scores of each sample; None if it does not fit the device."""
        return self._of_each(self._score, samples)

    def _of_each(self, compute: Callable[[list[Prepared]], list[T]], samples: Sequence[Prepared]) -> list[T | None]:
        """What `compute` returns for each sample of a batch; None if the sample does not fit the device."""
        teacher = self.job.teacher
        self.capture.begin_window([])
        lengths = [sample.length for sample in samples]
        found: list[T | None] = [None] * len(samples)
        for bucket in length_buckets(lengths, token_budget=teacher.token_budget, max_samples=teacher.batch):
            self.job.control.check()
            parts = in_halves(lambda numbers: compute([samples[n] for n in numbers]), bucket, lambda: None)
            for numbers, part in parts:
                for number, one in zip(numbers, part or (), strict=part is not None):
                    found[number] = one
        return found

    def _score(self, samples: Sequence[Prepared]) -> list[SampleScores]:
        states = self.capture.supervised_states(samples)
        return [self._label_scores(hidden, sample) for hidden, sample in zip(states, samples, strict=True)]

    @torch.no_grad()
    def _label_scores(self, hidden_ND: Tensor, sample: Prepared) -> SampleScores:
        wanted_N3 = torch.from_numpy(_labels_and_neighbours(sample)).to(hidden_ND.device)
        picked, entropies = [torch.empty(0, 3)], [torch.empty(0)]
        for hidden_nD, wanted_n3 in zip(
            hidden_ND.split(POSITIONS_AT_ONCE), wanted_N3.split(POSITIONS_AT_ONCE), strict=True
        ):
            logprobs_nV = self.model.head(hidden_nD).float().log_softmax(-1)
            picked.append(logprobs_nV.gather(1, wanted_n3.clamp(min=0)).cpu())
            entropies.append(-(logprobs_nV.exp() * logprobs_nV).sum(-1).cpu())
        found = torch.cat(picked).double().numpy()
        beside = np.where(_labels_and_neighbours(sample)[:, 1:] >= 0, found[:, 1:], np.nan)
        return SampleScores(own_N=found[:, 0], entropy_N=torch.cat(entropies).double().numpy(), beside_N2=beside)

    def labels(self, samples: Sequence[Prepared], scores: Sequence[SampleScores]) -> SanityFinding:
        """Compare the probabilities of labels with those of their neighbours; `scores` are those of `samples`."""
        vocab_size = self.model.config.vocab_size
        found = judge_labels(scores, vocab_size)
        if found.outcome != "failed":
            return found
        shuffled = self.scores([_with_shuffled_labels(sample) for sample in samples])
        return judge_shuffled(found, [part for part in shuffled if part is not None and part.is_usable], vocab_size)

    def advantage(self, samples: Sequence[Prepared]) -> SanityFinding:
        """Compare the labels' log-probabilities of the two passes of `store.counterfactual`."""
        with_image = [sample for sample in samples if sample.image_hashes]
        found = self._of_each(self._advantages, with_image)
        rounding = advantage_rounding(self.job.teacher.precision)
        return judge_advantage([values for values in found if values is not None], rounding)

    def _advantages(self, samples: Sequence[Prepared]) -> list[NDArray[np.float64]]:
        def of_sample(captured: Captured) -> NDArray[np.float64]:
            rows = captured.counterfactual
            return np.zeros(0) if rows is None else rows.arrays.wait()[ADVANTAGE][rows.rows].astype(np.float64)

        return [of_sample(captured) for captured in self.capture(samples)]

    def batch(self, samples: Sequence[Prepared]) -> SanityFinding:
        """Compare hidden states of samples of different length, batched and one by one."""
        teacher = self.job.teacher
        by_length = sorted((sample for sample in samples if _num_labels(sample)), key=lambda sample: sample.length)
        if len(by_length) < 2:
            return finding("batch", None, f"{len(by_length)} samples with labels, 2 are needed")
        chosen = [by_length[i] for i in np.linspace(0, len(by_length) - 1, min(COMPARED, len(by_length))).astype(int)]
        self.capture.begin_window([])
        try:
            together = self.capture.supervised_states(chosen)
            alone = [self.capture.supervised_states([sample])[0] for sample in chosen]
        except RuntimeError as error:
            if not may_be_out_of_memory(error):
                raise
            return finding("batch", None, f"{len(chosen)} samples at once do not fit the device")
        errors = [float((a - b).float().norm() / b.float().norm()) for a, b in zip(together, alone, strict=True)]
        worst = max((error for error in errors if np.isfinite(error)), default=0.0)  # NaN is an error of that sample
        limit = ROUNDING[teacher.dtype] if teacher.quantization == "none" else ROUNDING_QUANTIZED
        figures = f"hidden states of {len(chosen)} samples differ by {worst:.2g} from those of single samples"
        return finding(
            "batch", worst <= limit, f"{figures}, rounding explains at most {limit:g}", "try teacher.batch 1"
        )


def check_teacher(
    model: VisionLanguageModel, planned: Iterable[Sample], threads: PreparationThreads, job: DumpJob
) -> Iterator[SanityFinding]:
    """Run all checks on the first samples of the plan.

    Raises:
        InputError: a check failed and `teacher.sanity` is `stop`.
    """
    samples = _first_samples(planned, threads)
    checks = _Checks(model, job)
    scores = dict(zip(range(len(samples)), checks.scores(samples), strict=True))
    usable = {number: found for number, found in scores.items() if found is not None and found.is_usable}
    vocab_size = model.config.vocab_size
    for found in (
        checks.batch(samples),
        checks.labels([samples[number] for number in usable], list(usable.values())),
        _check_images(checks, threads, samples, usable, vocab_size),
        *([] if job.store.counterfactual is None else [checks.advantage([samples[number] for number in usable])]),
    ):
        if found.outcome == "failed":
            line = f"{job.teacher.checkpoint}: teacher check {found.name!r} failed: {found.message}"
            if job.teacher.sanity == "stop":
                raise InputError(f"{line} (teacher.sanity is 'stop'; 'warn' continues)")
            job.control.notice(line)
        yield found


def _check_images(
    checks: _Checks,
    threads: PreparationThreads,
    samples: Sequence[Prepared],
    scores: dict[int, SampleScores],
    vocab_size: int,
) -> SanityFinding:
    """Score samples with one image again with the image of the next such sample (the last with the first's)."""
    numbers = list({samples[n].image_hashes: n for n in scores if len(samples[n].image_hashes) == 1}.values())
    numbers = numbers[:ENOUGH_IMAGES]
    if len(numbers) < MIN_IMAGES:
        return judge_images([scores[n] for n in numbers], [], vocab_size)
    others = numbers[1:] + numbers[:1]
    # tokens and positions follow the image: another one may have other vision tokens
    exchanged = threads.with_images_of([samples[n] for n in numbers], [samples[n] for n in others])
    usable = {n: sample for n, sample in zip(numbers, exchanged, strict=True) if sample is not None}
    swapped = dict(zip(usable, checks.scores(list(usable.values())), strict=True))
    pairs = [(scores[n], found) for n, found in swapped.items() if found is not None and found.is_usable]
    left_out = len(numbers) - len(pairs)
    return judge_images([right for right, _ in pairs], [wrong for _, wrong in pairs], vocab_size, left_out=left_out)


def _first_samples(planned: Iterable[Sample], threads: PreparationThreads) -> list[Prepared]:
    """The first usable samples, until enough of them have distinct images."""
    found: list[Prepared] = []
    remaining = itertools.islice(planned, MAX_SAMPLES)
    while samples := list(itertools.islice(remaining, SAMPLES_AT_ONCE)):
        found += threads.prepare(samples)
        if len({sample.image_hashes for sample in found if sample.image_hashes}) >= ENOUGH_IMAGES:
            break
    return found


def _labels_and_neighbours(sample: Prepared) -> NDArray[np.int64]:
    """[N, 3]: the label, and those of the next and the previous position; -1 if there is none or it is equal."""
    positions = sample.example.positions
    labels, at = positions.next_labels.astype(np.int64), positions.supervised_positions
    wanted = np.full((len(labels), 3), -1, np.int64)
    wanted[:, 0] = labels
    beside = np.flatnonzero((np.diff(at) == 1) & (labels[1:] != labels[:-1]))
    wanted[beside, 1] = labels[beside + 1]
    wanted[beside + 1, 2] = labels[beside]
    return wanted


def _with_shuffled_labels(sample: Prepared) -> Prepared:
    """A copy whose supervised tokens are in another order."""
    example = sample.example
    at = np.flatnonzero(example.labels != IGNORE_LABEL)
    at = at[at > 0]  # nothing predicts the first token
    order = np.random.default_rng(0).permutation(len(at))
    input_ids, labels = example.input_ids.copy(), example.labels.copy()
    input_ids[at], labels[at] = input_ids[at][order], labels[at][order]
    positions = replace(example.positions, next_labels=labels[at])
    return replace(sample, example=replace(example, input_ids=input_ids, labels=labels, positions=positions))


def _num_labels(sample: Prepared) -> int:
    return len(sample.example.positions.next_labels)
