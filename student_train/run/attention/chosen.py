"""How a run compares attention: resolved from its settings, the student, and the layers of store or stem."""

from alignkd.storage import StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.attention_source import ChosenAttention, stored_attention
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.attention.layer_map import layer_pairs
from alignkd.student_train.objective.attention.match import AttentionMatch, FixedHeads
from alignkd.student_train.run.checks.target_sources import stem_of_run, targets_of_stem
from alignkd.vlm.families.family import ModelConfig


def attention_match(reader: StoreReader, student: ModelConfig, config: TrainConfig) -> AttentionMatch | None:
    """How attention is compared; None for a run without the attention loss.

    Raises:
        TrainError: layers that do not exist or of which there is no attention; or as `stem_of_run`.
        StoreError, InputError: as `stem_of_run`.
    """
    losses = config.losses
    if "attention" not in losses.weights:
        return None
    stored = stored_attention(reader.manifest, of_layers=losses.compares_layers)
    match = AttentionMatch(
        pairs=layer_pairs(
            losses.attention_layers,
            student,
            teacher_layers(reader, config),
            first=reader.manifest.shapes.attention_layer,
            of_stem="attention" in targets_of_stem(reader, config) and not stored.names,
        ),
        form=losses.attention_form,
        heads=losses.attention_heads,
        row_weights=losses.attention_row_weights,
        of_layers=losses.compares_layers,
    )
    pairs = stored.pairs
    if match.form == "filtered_cosine" and "vqv" not in pairs:
        raise TrainError(
            f"losses.attention_form is 'filtered_cosine', which compares the rows of vision tokens, but store "
            f"{reader.path} has attention of {' and '.join(pairs)} only; take another form, or dump with "
            "store.attention.pairs vqv"
        )
    if match.row_weights == "surprise" and (reader.manifest.shapes.vision_tokens is None or "tqt" in pairs):
        found = "of text tokens" if "tqt" in pairs else "images with different numbers of tokens"
        raise TrainError(
            f"losses.attention_row_weights is 'surprise', but store {reader.path} has {found}, which have no mean map; "
            "set it to 'sharpness' or 'none'"
        )
    return match


def teacher_layers(reader: StoreReader, config: TrainConfig) -> tuple[int, ...]:
    """The teacher's layers of which store or stem give attention, rising.

    Raises:
        As `stem_of_run`.
    """
    stored = stored_attention(reader.manifest, of_layers=config.losses.compares_layers)
    if "attention" not in targets_of_stem(reader, config):
        return stored.layers
    info = stem_of_run(reader, config)
    assert info is not None
    given = tuple(layer for layer in info.config.attention_layers if layer < info.depth)
    return tuple(layer for layer in stored.layers if layer in given) if stored.names else given


def teacher_heads(reader: StoreReader, config: TrainConfig) -> int:
    """Heads of each layer of the teacher's attention in batches: as stored, or all from the stem."""
    if "attention" not in config.losses.weights or "attention" in targets_of_stem(reader, config):
        return reader.manifest.shapes.num_heads
    return stored_attention(reader.manifest, of_layers=config.losses.compares_layers).heads


def chosen_attention(reader: StoreReader, match: AttentionMatch | None) -> ChosenAttention:
    """The attention that batches carry."""
    stored = stored_attention(reader.manifest, of_layers=match is not None and match.of_layers)
    return stored.chosen(stored.layers if match is None else match.teacher_layers)


def fixed_heads(match: AttentionMatch | None, *, num_students: int, num_teachers: int) -> FixedHeads | None:
    """The mixture of the teacher's heads where no adapter is trained."""
    if match is None or match.heads == "adapter":
        return None
    return FixedHeads(match.heads, num_students=num_students, num_teachers=num_teachers)
