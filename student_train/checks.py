"""What must fit together before the first step: store, student and settings."""

from storage import StoreReader, check_fingerprint
from student_train.config import LossConfig
from student_train.errors import TrainError
from vlm.config import VLMConfig
from vlm.examples import ExampleBuilder


def check_store_fits(reader: StoreReader, builder: ExampleBuilder, student: VLMConfig, losses: LossConfig) -> None:
    """Refuse a store made for another student, or one that lacks a target of `losses`.

    Raises:
        StoreError: tokenizer, template or image pre-processing differ.
        TrainError: vocabulary, sample length or targets do not fit.
    """
    check_fingerprint(reader, builder.fingerprint)
    _check_sizes(reader, builder, student)
    for term, codec_key in TARGET_OF_TERM.items():
        if term in losses.weights:
            _check_target(reader, term, losses.weights[term], codec_key)
    if "logit" in losses.weights and losses.temperature != 1.0 and _codec(reader, "logits") != "full":
        raise TrainError(
            f"losses.temperature is {losses.temperature}, but store {reader.path} keeps logits "
            f"{_codec(reader, 'logits')!r}, whose tail fits temperature 1.0 only; set it to 1.0 or dump full logits"
        )


TARGET_OF_TERM = {
    "attention": "attention",
    "vision_all": "vision_all",
    "vision_focus": "vision_top",
    "logit": "logits",
}


def _codec(reader: StoreReader, key: str) -> str:
    codecs = reader.manifest.codecs
    return str(codecs.logits.kind if key == "logits" else getattr(codecs, key))


def _check_target(reader: StoreReader, term: str, weight: float, key: str) -> None:
    if _codec(reader, key) == "none":
        raise TrainError(
            f"losses.{term} is {weight}, but store {reader.path} was dumped with codecs.{key} none; "
            f"set losses.{term} to 0 or dump again with that target"
        )


def _check_sizes(reader: StoreReader, builder: ExampleBuilder, student: VLMConfig) -> None:
    if not len(reader):
        raise TrainError(f"store {reader.path} holds 0 samples, all {len(reader.quarantined)} were quarantined")
    if (found := reader.manifest.shapes.vocab_size) != student.vocab_size:
        raise TrainError(
            f"store {reader.path}: the teacher's vocab_size is {found}, the student's {student.vocab_size}; "
            "teacher and student must share a vocabulary"
        )
    longest = int(reader.sequence_lengths.max())
    if builder.max_tokens is not None and longest > builder.max_tokens:
        raise TrainError(
            f"store {reader.path}: its longest sample has {longest} tokens, max_tokens is {builder.max_tokens}; "
            "raise max_tokens or dump again with it"
        )
