"""Which vision tokens the text attends to most: the focus score of the paper's eq. 2."""

from torch import Tensor

VISION_TOP_TOKENS = 16


def focus_scores(tqv_attention_HQP: Tensor) -> Tensor:
    """`a_P`: attention to each vision token, summed over text queries and averaged over heads; float32 [P]."""
    return tqv_attention_HQP.float().mean(dim=0).sum(dim=0)


def vision_top_index(tqv_attention_HQP: Tensor) -> Tensor:
    """Indices of the (at most) 16 vision tokens with the highest score, best first, ties by position; int64 [16]."""
    order_P: Tensor = focus_scores(tqv_attention_HQP).argsort(descending=True, stable=True)
    return order_P[:VISION_TOP_TOKENS]
