"""Which vision tokens the text looks at: the focus score of the paper's eq. 2."""

from torch import Tensor

FOCUS_TOKENS = 16


def focus_scores(tqv_attention_HQP: Tensor) -> Tensor:
    """`a_P`: attention that each vision token gets, summed over text queries, averaged over heads; float32 [P]."""
    return tqv_attention_HQP.float().mean(dim=0).sum(dim=0)


def focus_tokens(tqv_attention_HQP: Tensor) -> Tensor:
    """Indices of the (at most) 16 vision tokens with the highest score, best first, ties by position; int64 [16]."""
    order_P: Tensor = focus_scores(tqv_attention_HQP).argsort(descending=True, stable=True)
    return order_P[:FOCUS_TOKENS]
