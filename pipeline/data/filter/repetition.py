"""How much of a text repeats itself."""

import re

WORDS = 4
# a run of characters without white space, or one character of a script that is written without spaces
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def repetition(text: str) -> float:
    """Share of the runs of 4 words that stand in the text more than once, the first of each not counted.

    It is 1 - distinct runs / all runs ("seq-rep-4", Welleck et al., arXiv 1908.04319). Words are what white space
    separates; each Chinese character and each kana is a word of its own. A text of fewer than 4 words repeats nothing.
    """
    words = _WORD.findall(text)
    runs = [tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)]
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0
