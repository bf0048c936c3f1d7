"""Which vision tokens the text looks at: `vlm.focus`, which training needs too."""

from vlm.focus import FOCUS_TOKENS, focus_scores, focus_tokens

__all__ = ["FOCUS_TOKENS", "focus_scores", "focus_tokens"]
