"""The source of each target of a run: the store or the teacher's stem."""

from pathlib import Path

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.counterfactual import removed_part
from alignkd.storage.schema.targets.sequence import has_sequence_logprob
from alignkd.storage.schema.targets.vision import STATE_NORMS, VISION_STATES, keeps, stored_relations
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.attention_source import stored_attention
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import Target
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.target_source import target_source
from alignkd.vlm.stem.checks import check_stem_of_teacher
from alignkd.vlm.stem.file import STEM_FILE, StemInfo, open_table, read_stem_info
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE


def targets_of_stem(reader: StoreReader, config: TrainConfig) -> frozenset[str]:
    """The targets (`attention`, `vision_top`, `vision_all`, `logits`) that this run takes from the stem.

    For `logits` the stem provides only the head that turns stored hidden states into logits, also those at the vision
    positions.

    Raises:
        TrainError: a loss has a weight, but its target is neither stored nor provided by a stem.
    """
    return frozenset(
        "logits" if key == "vision_states" else key
        for term, key in targets_by_term(reader.manifest, config.losses).items()
        if _comes_from_stem(reader, config, term, key)
    )


def targets_by_term(manifest: Manifest, losses: LossConfig) -> dict[str, Target]:
    """The target that each term with a weight needs from a store, by term: as `LossConfig.targets_in`."""
    relations = stored_relations(manifest)
    return losses.targets_in(relations=None if relations is None else relations[1], norms=keeps(manifest, STATE_NORMS))


def needs_head(manifest: Manifest, losses: LossConfig) -> bool:
    """Whether the teacher's head turns stored hidden states into logits."""
    on_logits = "logits" in losses.needed_targets.values() and manifest.codecs.logits.kind == "hidden"
    return on_logits or losses.needs_teacher_head


def stem_of_run(reader: StoreReader, config: TrainConfig) -> StemInfo | None:
    """The stem of the store's teacher, if the run needs it, else None. No tensor is read.

    Raises:
        TrainError: as `targets_of_stem`; or there is no stem; or it lacks the `lm_head` that the logits need.
        StoreError: the stem in the store is missing or damaged.
        InputError: the file is not a stem, or is that of another teacher.
    """
    wanted = targets_of_stem(reader, config)
    if not wanted:
        return None
    info = read_stem_info(_stem_path(reader, config))
    check_stem_of_teacher(info, reader.manifest.fingerprint, str(reader.path))
    if "logits" in wanted and not info.has_lm_head:
        raise TrainError(
            f"{info.path}: has no lm_head, which targets.logits 'stem' needs; extract it again with --lm-head, or set "
            "targets.logits to 'stored'"
        )
    return info


def stem_lookup(reader: StoreReader, config: TrainConfig) -> StemLookup | None:
    """The part of the stem that prepares batches; None if no target comes from the stem.

    It needs no model, so data workers can be started with it before the model exists. The table is mapped from the
    file, so the workers share its memory.

    Raises:
        As `stem_of_run`.
    """
    wanted = targets_of_stem(reader, config) - {"logits"}
    info = stem_of_run(reader, config) if wanted else None
    return None if info is None else StemLookup(wanted=wanted, table=open_table(info))


def _stem_path(reader: StoreReader, config: TrainConfig) -> Path:
    if config.stem is not None:
        return config.stem
    if STEM_FILE in reader.manifest.attachments:
        return reader.attachment(STEM_FILE)
    raise TrainError(
        f"store {reader.path} has no stem, and train.stem is not set; write the teacher's stem by "
        "`alignkd stem extract CONFIG --out stem.safetensors` and set train.stem to that file"
    )


def _comes_from_stem(reader: StoreReader, config: TrainConfig, term: str, key: str) -> bool:
    if key == "preference":
        _check_preference(reader, config)
        return False
    if key == "counterfactual":
        _check_counterfactual(reader, config, term)
        return False
    if key == AFFINITY or term == "vision_matching":
        _check_kept(reader, config, term, key)
        return key == "vision_states" and _head_of_stem(reader, config)
    if key in ("vision_states", "vision_relations"):
        _check_states(reader, config, term, key)
        return TERMS[term].teacher_head and _head_of_stem(reader, config)
    if TERMS[term].target == "state_norms":
        _check_norms(reader, config, term)
        return False
    return _head_is_the_stems(reader, config, term) if key == "logits" else _is_the_stems(reader, config, term, key)


def _check_counterfactual(reader: StoreReader, config: TrainConfig, term: str) -> None:
    if (problem := config.losses.problem_of_counterfactual(term, removed_part(reader.manifest))) is not None:
        raise TrainError(f"store {reader.path}: {problem}")


def _check_preference(reader: StoreReader, config: TrainConfig) -> None:
    if not has_sequence_logprob(reader.manifest) and Pairs.of(reader).rejected.any():
        raise TrainError(
            f"train.preference is {config.preference!r}, but store {reader.path} lacks sequence_logprob, the reference "
            "of the loss, which earlier versions did not write; dump again into another path, or set train.preference "
            "to none and losses.preference to 0"
        )


def _check_kept(reader: StoreReader, config: TrainConfig, key: str, target: str) -> None:
    """Refuse a store without a further target that a key of the section `losses` needs."""
    if not keeps(reader.manifest, target):
        value = getattr(config.losses, key)
        other = "'place'" if isinstance(value, str) else "0"
        raise TrainError(
            f"losses.{key} is {value}, but store {reader.path} keeps no target for it; set losses.{key} to {other} or "
            f"dump again with store.{target}"
        )


def _check_states(reader: StoreReader, config: TrainConfig, term: str, key: str) -> None:
    """Refuse a store without the states, or the relations, that a term on vision tokens compares."""
    if key == "vision_states" and keeps(reader.manifest, VISION_STATES):
        return
    losses, relations = config.losses, stored_relations(reader.manifest)
    if key == "vision_relations" and relations is not None and relations[1] == losses.relations_of:
        return
    wanted = "store.vision_states"
    if term == "relation":
        found = "no relations" if relations is None else f"those of {relations[1]}"
        of = losses.relations_of
        also = " or with store.vision_states" if key == "vision_states" else ""
        wanted = f"store.vision_relations and store.relations_of {of}{also} (it has {found})"
        if losses.relation_rows == "plain":
            wanted = "store.vision_states, which losses.relation_rows 'plain' needs"
    raise TrainError(
        f"losses.{term} is {losses.weights[term]}, but store {reader.path} keeps no target for it; set losses.{term} "
        f"to 0 or dump again with {wanted}"
    )


def _check_norms(reader: StoreReader, config: TrainConfig, term: str) -> None:
    if not keeps(reader.manifest, STATE_NORMS) and reader.manifest.codecs.logits.kind != "hidden":
        raise TrainError(
            f"losses.{term} is {config.losses.weights[term]}, but store {reader.path} keeps neither state_norms nor "
            f"logits 'hidden'; set losses.{term} to 0 or dump again with store.state_norms"
        )


def _head_of_stem(reader: StoreReader, config: TrainConfig) -> bool:
    """Whether the head for stored hidden states is that of the stem: it is chosen, or the store has none."""
    chosen = config.targets.logits
    return LM_HEAD_FILE not in reader.manifest.attachments if chosen is None else chosen == "stem"


def _is_the_stems(reader: StoreReader, config: TrainConfig, term: str, key: str) -> bool:
    chosen = getattr(config.targets, key)
    if key == "attention":
        codec = stored_attention(reader.manifest, of_layers=config.losses.compares_layers).codec
    else:
        codec = getattr(reader.manifest.codecs, key)
    source = target_source(codec, chosen, has_stem=config.stem is not None)
    if source is None:
        asked = "" if chosen is None else f" and targets.{key} is {chosen!r}"
        raise TrainError(
            f"losses.{term} is {config.losses.weights[term]}, but store {reader.path} was dumped with codecs.{key} "
            f"{codec}{asked}; set losses.{term} to 0 or dump again with that target, or take it from the teacher's "
            f"stem (targets.{key}: stem)"
        )
    return source == "stem"


def _head_is_the_stems(reader: StoreReader, config: TrainConfig, term: str) -> bool:
    kind, chosen = reader.manifest.codecs.logits.kind, config.targets.logits
    if kind == "none":
        raise TrainError(
            f"losses.{term} is {config.losses.weights[term]}, but store {reader.path} was dumped with codecs.logits "
            f"none; set losses.{term} to 0 or dump again with that target"
        )
    if chosen == "stem" and kind != "hidden":
        raise TrainError(
            f"targets.logits is 'stem', but store {reader.path} keeps logits {kind!r}, which need no lm_head; set it "
            "to 'stored', or dump logits 'hidden'"
        )
    return kind == "hidden" and _head_of_stem(reader, config)
