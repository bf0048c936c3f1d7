"""The base class of models."""

import abc
from typing import Any, Self


class lmms(abc.ABC):  # noqa: N801
    """What every model inherits."""

    is_simple: bool = True

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1
        self.task_dict: dict[str, Any] = {}

    @abc.abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abc.abstractmethod
    def generate_until(self, requests: Any) -> list[str]: ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests: Any) -> list[str]: ...

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        given = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        values = {name: int(text) if text.isnumeric() else text for name, text in given.items()}
        others = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**values, **others)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size
