"""From a configuration and counted data to the loads that decide the memory of both phases."""

import numpy as np

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.disk.counterfactual import has_second_pass
from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.disk.store import StoreSize
from alignkd.pipeline.plan.memory.loads import ELEMENT, LOGIT_BYTES, StudentLoad, TeacherLoad
from alignkd.pipeline.plan.memory.micro_batch import LargestMicroBatch, may_accumulate
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.stem import stem_pass_bytes
from alignkd.storage.codecs.settings import NONE
from alignkd.student_train.objective.attention.layer_map import number_of_pairs
from alignkd.student_train.objective.attention.match import COPIES_OF_FORM
from alignkd.student_train.objective.terms import TERMS


def teacher_load(config: RunConfig, data: DataSize, store: StoreSize, teacher_shapes: ModelShapes) -> TeacherLoad:
    """The load of the teacher pass: its fullest batch."""
    assert config.teacher is not None
    teacher, rows = config.teacher, data.rows
    longest, shortest = data.longest(config.max_tokens), max(1, int(rows.length.min()))
    tokens = max(teacher.token_budget, longest)
    samples = max(1, min(teacher.batch, teacher.token_budget // shortest))
    stored = store.of_targets
    per_token = max(1.0, float(rows.length.sum()))
    vision, largest = samples * int(rows.vision.max()), int(rows.vision.max())
    if teacher_shapes.size.vision_tokens is None:  # one id per vision token, so the budget bounds them
        vision = min(vision, tokens)
    rows_of = {"tqv": rows.queries, "tqt": rows.queries, "vqv": rows.vision}
    attention_rows = max((float(rows_of[pairs].sum()) for pairs in config.store.computed_pairs()), default=0.0)
    return TeacherLoad(
        dtype=teacher.dtype,
        quantization=teacher.quantization,
        tokens=min(tokens, samples * longest),
        longest=longest,
        images=samples * max(1, int(rows.images.max())),
        vision=vision,
        largest=largest,
        supervised=round(tokens * float(rows.supervised.sum()) / per_token),
        queries=round(tokens * attention_rows / per_token),
        stored=round(tokens * stored / (data.num_records * data.mean("length"))),
        logit_bytes=LOGIT_BYTES[config.store.logits.kind],
        watched=config.store.most_watched_layers(teacher_shapes.size.num_layers),
        vision_states=config.store.vision_states != NONE,
        recorded=len(config.store.recorded_layers),
    )


def student_load(
    config: RunConfig,
    data: DataSize,
    store: StoreSize,
    teacher: ModelShapes,
    *,
    devices: int,
    student_layers: int,
    student_hidden: int,
    stem_weights: int = 0,
    stem_depth: int = 1,
) -> StudentLoad | None:
    """The load of training, a micro-batch padded to the longest sample; None if the configuration trains no student.

    Args:
        student_layers, student_hidden: decoder layers and hidden size of the student.
        stem_weights: bytes of the teacher's stem on the device; 0 if it gives no target.
        stem_depth: its depth.
    """
    if config.student is None or config.train is None:
        return None
    assert config.teacher is not None
    train, rows = config.train, data.rows
    adapters = {TERMS[name].adapter for name in train.losses.weights}
    limit = config.max_tokens
    blocks = int(rows.images.max()) if teacher.size.vision_tokens is not None else 1
    # one sample may be longer than the counted ones
    largest = LargestMicroBatch.of(train, np.append(rows.length, data.longest(limit)), devices)
    most = {
        name: largest.most(np.append(getattr(rows, name), data.most(name, limit))) for name in ("supervised", "queries")
    }
    vision = largest.most(np.append(rows.vision, rows.vision.max()))
    return StudentLoad(
        dtype=config.student.dtype,
        micro_batch=largest.samples,
        token_budget=train.token_budget or 0,
        length=largest.length,
        supervised=most["supervised"],
        vision=vision,
        queries=most["queries"] * blocks if "attention" in train.losses.weights else 0,
        teacher_heads=teacher.size.num_heads,
        teacher_hidden=teacher.size.hidden_size,
        hidden_logits=(config.store.logits.kind == "hidden" and "logit" in train.losses.weights)
        or train.losses.needs_teacher_head,
        head_chunk_mib=train.losses.head_chunk_mib,
        attention_chunk_bytes=train.losses.attention_chunk_bytes("cuda"),
        attention_copies=COPIES_OF_FORM[train.losses.attention_form],
        attention_layers=number_of_pairs(train.losses.attention_layers, student_layers),
        devices=devices,
        optimizer=train.optimizer,
        gradient_checkpointing=train.gradient_checkpointing,
        kernels=train.kernels,
        accumulates=may_accumulate(train, devices),
        stem_weights=stem_weights,
        stem_pass=stem_pass_bytes(
            teacher, dtype=config.teacher.dtype, depth=stem_depth, tokens=largest.samples * largest.length
        ),
        float32_gradients=train.float32_gradients,
        data_workers=train.data_workers,
        trained=config.student.trained_config,
        attn_adapter="attn_adapter" in adapters,
        proj_adapter="proj_adapter" in adapters,
        state_adapter="state_adapter" in adapters and teacher.size.hidden_size != student_hidden,
        relations="relation" in train.losses.weights,
        head_positions=-(-vision // largest.samples) if train.losses.needs_teacher_head else 0,
        passes=2 if has_second_pass(train.losses) else 1,
        num_samples=round(data.num_records),
        batch_bytes=largest.samples
        * _prepared_bytes(data, store, teacher, length=largest.length, vision=vision, from_stem=stem_weights > 0),
    )


def _prepared_bytes(
    data: DataSize, store: StoreSize, teacher: ModelShapes, *, length: int, vision: int, from_stem: bool
) -> int:
    """Bytes of a prepared sample: float32 pixels, stored targets, token embeddings for the stem."""
    pixels = teacher.array_bytes_of(vision)
    targets = store.of_targets / max(1.0, data.num_records)
    rows = ELEMENT["bfloat16"] * teacher.size.hidden_size * length if from_stem else 0
    return pixels + round(targets * length / max(1.0, data.mean("length"))) + rows
