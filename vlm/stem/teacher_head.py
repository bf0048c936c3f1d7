"""The teacher's files inside a store: the names of its tokenizer and its output head, and how the head is stored."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from alignkd.vlm.errors import InputError, one_line, unreadable
from alignkd.vlm.families.family import Head
from alignkd.vlm.weights.tensor_file import open_tensors

TOKENIZER_FILE = "tokenizer.model"
LM_HEAD_FILE = "lm_head.safetensors"
LM_HEAD_KEY = "lm_head.weight"
LM_HEAD_BIAS_KEY = "lm_head.bias"
# in the file's metadata, as decimal text; absent where the head has none
SCALE, SOFTCAP = "scale", "softcap"


def head_bytes(head: Head) -> bytes:
    """The content of a safetensors file with matrix [V, Dt] and bias, in their own dtype, scale and soft cap."""
    tensors = {LM_HEAD_KEY: head.weight_VD}
    if head.bias_V is not None:
        tensors[LM_HEAD_BIAS_KEY] = head.bias_V
    numbers = {SCALE: None if head.scale == 1.0 else head.scale, SOFTCAP: head.softcap}
    metadata = {name: repr(value) for name, value in numbers.items() if value is not None}
    content: bytes = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=metadata or None
    )
    return content


def read_head(path: Path, *, vocab_size: int, hidden_size: int) -> Head:
    """The head that `head_bytes` wrote, on the CPU.

    Raises:
        InputError: not a safetensors file, or a matrix of another shape.
    """
    try:
        with open_tensors(path) as file:
            weight_VD: Tensor = file.get_tensor(LM_HEAD_KEY)
            bias_V = file.get_tensor(LM_HEAD_BIAS_KEY) if LM_HEAD_BIAS_KEY in file.keys() else None  # noqa: SIM118
            metadata = file.metadata() or {}
        scale, softcap = (float(metadata[name]) if name in metadata else None for name in (SCALE, SOFTCAP))
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)[:200]}); dump the targets again") from error
    if tuple(weight_VD.shape) != (vocab_size, hidden_size):
        raise InputError(
            f"{path}: {LM_HEAD_KEY} has shape {tuple(weight_VD.shape)}, the store's teacher has "
            f"{(vocab_size, hidden_size)}; dump the targets again"
        )
    return Head(weight_VD=weight_VD, bias_V=bias_V, scale=1.0 if scale is None else scale, softcap=softcap)
