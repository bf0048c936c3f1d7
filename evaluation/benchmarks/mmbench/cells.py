"""What a cell of MMBench's table becomes in the original: pandas reads the table, and the answers pass an xlsx file."""

# texts that pandas reads as missing
_MISSING = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
# an xlsx file stores these as errors, and a text after `=` as a formula without a value
_XLSX_ERRORS = frozenset(("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A"))
_XLSX_MAX_LENGTH = 32_767
NO_TEXT = "nan"


def is_missing(cell: str) -> bool:
    """Whether pandas reads the text of a cell as missing, such as "" and "None"."""
    return cell in _MISSING


def is_skipped(cell: str) -> bool:
    """Whether the prompt leaves a hint or an option out: it is missing, or "nan" or "none" in any case."""
    return is_missing(cell) or cell.lower() in ("nan", "none")


def through_xlsx(text: str) -> str:
    """The text of an answer or option as the official tool reads it; what is missing there becomes "nan"."""
    is_formula = len(text) > 1 and text.startswith("=")
    return NO_TEXT if is_formula or is_missing(text) or text in _XLSX_ERRORS else text[:_XLSX_MAX_LENGTH]
