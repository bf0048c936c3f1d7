"""A file written in large pieces holds what was appended, in any portions."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alignkd.storage.files.append
from alignkd.storage.files.append import AppendFile


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), piece=st.integers(1, 500), write_back=st.integers(1, 1000))
def test_any_portions_give_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], piece: int, write_back: int
) -> None:
    portions = [np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("append") / "file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignkd.storage.files.append, "WRITE_BACK_BYTES", write_back)
        file, end = AppendFile(path, piece), 0
        for number, portion in enumerate(portions):
            file.append(portion.tobytes() if number % 2 else portion)
            end += len(portion)
            assert file.num_bytes == end
        file.close()
    expected = b"".join(portion.tobytes() for portion in portions)
    assert path.exists() == bool(expected)
    assert (path.read_bytes() if expected else b"") == expected
    assert file.sha256.hexdigest() == hashlib.sha256(expected).hexdigest()


def test_arrays_of_any_dtype_and_shape_are_their_bytes(tmp_path: Path) -> None:
    file = AppendFile(tmp_path / "file")
    arrays = [np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("<f2", "<u2", "<i8", "u1")]
    for array in arrays:
        file.append(array)
    file.append(np.empty((3, 0), np.float32))
    file.close()
    assert (tmp_path / "file").read_bytes() == b"".join(array.tobytes() for array in arrays)


def test_a_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    file = AppendFile(tmp_path / "file")
    file.append(b"ours")
    with pytest.raises(FileExistsError):
        file.close()
    assert (tmp_path / "file").read_bytes() == b"theirs"
