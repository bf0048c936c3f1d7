"""A user's script for `make check`: mypy must see the type of every public name. Never run."""

from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import alignkd
from alignkd.storage.interop.float_view import FloatView
from alignkd.storage.tools.convert import CopyReport
from alignkd.storage.tools.verify.verify import VerifyReport


def look() -> None:
    """Opening and decoding."""
    store = alignkd.open_store("store")
    assert_type(store, alignkd.StoreReader)
    assert_type(store[0], alignkd.Record)
    assert_type(store[1:3], list[alignkd.Record])
    assert_type(store.manifest, alignkd.Manifest)
    for record in store:
        assert_type(record.attention_float32, NDArray[np.float32] | None)
    assert_type(store.logprobs(0), alignkd.DenseLogprobs | alignkd.SparseLogprobs)
    assert_type(store.logprobs(0).dense(), NDArray[np.float32])
    assert_type(alignkd.__version__, str)


def use(group: Any) -> None:
    """Jobs, tools, other readers."""
    assert_type(alignkd.dump(alignkd.dump_job("run.yaml", store={"path": "store"})), alignkd.DumpResult)
    assert_type(alignkd.train(alignkd.train_job("run.yaml")), alignkd.TrainResult)
    assert_type(alignkd.verify("store", deep=True), VerifyReport)
    assert_type(alignkd.convert("store", "tars", "webdataset"), CopyReport)
    assert_type(alignkd.float_view(group), FloatView)
    assert_type(alignkd.webdataset_decoder("tars")({"json": b"{}"}), dict[str, Any])
    dataset: torch.utils.data.Dataset[dict[str, Any]] = alignkd.TargetDataset("store")
    assert_type(dataset[0], dict[str, Any])
    try:
        alignkd.open_store("nowhere")
    except alignkd.errors.StoreError as error:
        base: alignkd.AlignkdError = error
        print(base)
