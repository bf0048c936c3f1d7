"""Device memory of the stem's pass over a batch, which ends before the student's decoder runs."""

from alignkd.pipeline.plan.memory.loads import ELEMENT
from alignkd.pipeline.plan.memory.shapes import ModelShapes


def stem_pass_bytes(teacher: ModelShapes, *, dtype: str, depth: int, tokens: int) -> int:
    """Bytes of activations at the peak of a pass over the stem's whole layers.

    3 I + 4 D + (k - 1) (D_q + D_k) values per token: gate, up and their product of one layer; spliced embeddings,
    input, input of the MLP and its norm; queries and keys of every whole layer, which are kept for the targets. 0 for
    a stem without a whole layer. A test compares this with torch's own count.

    Args:
        dtype: dtype of the stem.
        depth: k, see `Stem.depth`.
        tokens: positions of the batch, with padding.
    """
    if depth == 1:
        return 0
    size = teacher.size
    kept = (depth - 1) * (teacher.query_width + teacher.key_width)
    return ELEMENT[dtype] * tokens * (3 * size.intermediate_size + 4 * size.hidden_size + kept)
