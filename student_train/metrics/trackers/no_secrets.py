"""Text and configurations without credentials: what leaves the machine or is written to a log; loads no torch."""

import os
import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/@\s]+@")
# of signed addresses and of trackio's write token
_VALUE_OF_QUERY = re.compile(r"(?<=[?&])([^=&\s]+)=[^&\s'\")]+")
_URL = re.compile(r"\w+://\S+")
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET = 8  # characters; shorter values of such variables are switches


def without_secrets(value: Any) -> Any:
    """The same JSON-able value; users, passwords and query values of URLs and secrets of the environment are hidden."""
    if isinstance(value, Mapping):
        return {str(name): without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    text = _URL.sub(lambda url: _VALUE_OF_QUERY.sub(rf"\1={_HIDDEN}", _USER.sub(f"{_HIDDEN}@", url[0])), text)
    for name, secret in os.environ.items():
        if len(secret) >= _LEAST_SECRET and _SECRET_VARIABLE.search(name) and secret in text:
            text = text.replace(secret, _HIDDEN)
    return text
