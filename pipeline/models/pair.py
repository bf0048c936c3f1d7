"""Whether a teacher and a student fit, and which losses that allows: `alignkd models --pair`."""

from dataclasses import dataclass

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import available_layers, targets_from_stem
from alignkd.student_train.objective.attention.layer_map import layer_pairs
from alignkd.student_train.objective.settings import MATCHED
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.checks.fit import check_relations
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.towers import same_tower, why_no_stem
from alignkd.vlm.weights.hub import cached_checkpoint

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One property of both models.

    Attributes:
        needed_for: the losses that need it to be equal.
    """

    name: str
    teacher: str
    student: str
    equal: bool
    needed_for: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and a student.

    Attributes:
        compared: the properties that decide.
        losses: terms of the objective that the pair allows; empty if it fits not at all.
        matched_losses: further terms that it allows with `losses.vision_matching: hungarian`.
        columns: entries of the vocabulary that the logit loss compares.
        stem: whether the student can take attention and vision targets from the teacher's stem; None if unknown.
        stem_reason: why, as a phrase.
        verdict: one line.
    """

    teacher: str
    student: str
    compared: tuple[Compared, ...]
    losses: tuple[str, ...]
    matched_losses: tuple[str, ...]
    columns: int
    stem: bool | None
    stem_reason: str
    verdict: str


def compare(teacher: Checkpoint, student: Checkpoint) -> Pair:
    """Compare two checkpoints by their configuration, tokenizer and processor files.

    Of the weights only the vision towers are read, and only if they can be the same and are on this machine.

    Raises:
        InputError: a checkpoint is unusable.
    """
    theirs, own = teacher.preparation(), student.preparation()
    text = [
        _compared("tokenizer", theirs, own, "all losses"),
        _compared("template", theirs, own, "all losses"),
        Compared(
            name="entries",
            teacher=str(theirs.num_tokens),
            student=str(own.num_tokens),
            equal=theirs.num_tokens == own.num_tokens,
            needed_for="all losses",
        ),
    ]
    positional = [name for name, term in TERMS.items() if term.positional]
    images = [_compared(name, theirs, own, ", ".join(positional)) for name in ("vision_tokens", "image_processor")]
    head = Compared(
        name="columns of the head",
        teacher=str(teacher.config.vocab_size),
        student=str(student.config.vocab_size),
        equal=teacher.config.vocab_size == student.config.vocab_size,
        needed_for="all losses" if not student.config.pads_vocabulary else NONE,
    )
    compared = (*text, *images, head)
    is_possible = all(item.equal for item in compared if item.needed_for == "all losses")
    has_positions = all(item.equal for item in images)
    losses = tuple(name for name, term in TERMS.items() if has_positions or not term.positional) if is_possible else ()
    # unequal numbers of vision tokens are matched if they are the same for every image
    known = None not in (theirs.vision_tokens, own.vision_tokens) and images[1].equal
    matched = MATCHED if is_possible and not has_positions and known else ()
    stem, reason = _stem(teacher, student) if is_possible and has_positions else (False, "the pair does not allow it")
    return Pair(
        teacher=str(teacher.name),
        student=str(student.name),
        compared=compared,
        losses=losses,
        matched_losses=matched,
        columns=min(theirs.num_tokens, teacher.config.vocab_size) if is_possible else 0,
        stem=stem,
        stem_reason=reason,
        verdict=_verdict(compared, is_possible, has_positions, matched),
    )


def check_pair(config: RunConfig) -> None:
    """Refuse a student that training would refuse, before the teacher runs; no weights are read.

    Raises:
        InputError: a loss of the configuration cannot be computed, or a checkpoint is unusable.
        TrainError: layers whose attention is compared do not exist or are neither dumped nor given by the stem; or the
            student lacks the layer whose relations are compared.
    """
    assert config.teacher is not None and config.student is not None and config.train is not None
    teacher, student = (
        PlannedModel(str(section.checkpoint), section.vision_config, section.processor).checkpoint
        for section in (config.teacher, config.student)
    )
    pair = compare(teacher, student)
    matched = pair.matched_losses if config.train.losses.vision_matching == "hungarian" else ()
    if not config.train.losses.weights.keys() <= {*pair.losses, *matched}:
        raise InputError(
            f"student {student.name}, teacher {teacher.name}: {pair.verdict} (`alignkd models --pair TEACHER STUDENT` "
            "shows both values)"
        )
    check_relations(student.config, config.train.losses)
    losses, available = config.train.losses, available_layers(config, teacher.config)
    if "attention" in losses.weights and available is not None:
        of_depth = "attention" in targets_from_stem(config.train, config.store) and isinstance(
            config.store.attention, str
        )
        first = teacher.config.attention_layer
        layer_pairs(losses.attention_layers, student.config, available, first=first, of_stem=of_depth)


def pair_lines(pair: Pair) -> list[str]:
    """The comparison for a terminal."""
    lines = [f"teacher  {pair.teacher}", f"student  {pair.student}", ""]
    width = max(len(item.name) for item in pair.compared)
    for item in pair.compared:
        if item.equal:
            lines.append(f"{item.name:<{width}}  equal: {_short(item.teacher)}")
            continue
        need = "not needed: padding is masked" if item.needed_for == NONE else f"needed for {item.needed_for}"
        lines.append(f"{item.name:<{width}}  DIFFERENT ({need}): {_short(item.teacher)} / {_short(item.student)}")
    possible = {True: "possible", False: "not possible", None: "not known"}[pair.stem]
    return [*lines, f"{'stem':<{width}}  {possible}: {pair.stem_reason}", "", pair.verdict]


def _stem(teacher: Checkpoint, student: Checkpoint) -> tuple[bool | None, str]:
    if (reason := why_no_stem(teacher.config, student.config)) is not None:
        return False, reason
    if None in (cached_checkpoint(teacher.name), cached_checkpoint(student.name)):
        return None, "the weights of the towers are not on this machine"
    return same_tower(teacher, student, "float32")


def _compared(name: str, teacher: Preparation, student: Preparation, needed_for: str) -> Compared:
    values = teacher.fingerprint[name], student.fingerprint[name]
    return Compared(
        name=name, teacher=values[0], student=values[1], equal=values[0] == values[1], needed_for=needed_for
    )


def _verdict(compared: tuple[Compared, ...], is_possible: bool, has_positions: bool, matched: tuple[str, ...]) -> str:
    if not is_possible:
        names = ", ".join(item.name for item in compared if not item.equal and item.needed_for == "all losses")
        return f"the pair does not fit: {names} differ; take a student of the teacher's family and generation"
    if not has_positions:
        names = ", ".join(name for name, term in TERMS.items() if term.positional)
        but = f"; {' and '.join(matched)} need losses.vision_matching hungarian alone" if matched else ""
        return (
            f"supervised and logit losses only: set losses.{names} to 0, or take a student with the same image tokens"
            f"{but}"
        )
    return "all losses"


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:57]}..."
