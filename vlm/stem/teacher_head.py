"""The teacher's files inside a store: the names of its tokenizer and its `lm_head`, and how `lm_head` is stored."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from alignkd.vlm.errors import InputError, one_line, unreadable
from alignkd.vlm.weights.tensor_file import open_tensors

TOKENIZER_FILE = "tokenizer.model"
LM_HEAD_FILE = "lm_head.safetensors"
LM_HEAD_KEY = "lm_head.weight"


def lm_head_bytes(weight_VD: Tensor) -> bytes:
    """The content of a safetensors file with the matrix [V, Dt], in its own dtype."""
    content: bytes = save({LM_HEAD_KEY: weight_VD.detach().cpu().contiguous()})
    return content


def read_lm_head(path: Path, *, vocab_size: int, hidden_size: int) -> Tensor:
    """The matrix [V, Dt] that `lm_head_bytes` wrote, on the CPU.

    Raises:
        InputError: not a safetensors file, or a matrix of another shape.
    """
    try:
        with open_tensors(path) as file:
            weight_VD: Tensor = file.get_tensor(LM_HEAD_KEY)
    except OSError as error:
        raise unreadable(path, error) from error
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)[:200]}); dump the targets again") from error
    if tuple(weight_VD.shape) != (vocab_size, hidden_size):
        raise InputError(
            f"{path}: {LM_HEAD_KEY} has shape {tuple(weight_VD.shape)}, the store's teacher has "
            f"{(vocab_size, hidden_size)}; dump the targets again"
        )
    return weight_VD
