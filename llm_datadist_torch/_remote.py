# SPDX-License-Identifier: Apache-2.0
"""LLM-DataDist's calls that reach other machines."""

from typing import Any, NoReturn

from .status import LLMException, LLMStatusCode


class RemoteCall:
    """Stands where LLM-DataDist has a call that reaches other machines, and refuses it with LLM_FEATURE_NOT_ENABLED."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"{owner.__name__}.{name}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise LLMException(
            f"{self._name} reaches other machines, which llm_datadist_torch does not: use LLM-DataDist or HIXL for it",
            LLMStatusCode.LLM_FEATURE_NOT_ENABLED,
        )
