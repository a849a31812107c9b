"""What a wrong request is answered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

import pytest

from carft_sweep.carft_core.errors import RequestError

Args = ParamSpec("Args")


def refused(
    words: str, call: Callable[Args, object], *args: Args.args, **fields: Args.kwargs
) -> None:
    """Check that a call is refused by a message that has `words`, a regular expression."""
    with pytest.raises(RequestError, match=words):
        call(*args, **fields)


def refusal(call: Callable[Args, object], *args: Args.args, **fields: Args.kwargs) -> str:
    """The message by which a call is refused."""
    with pytest.raises(RequestError) as caught:
        call(*args, **fields)
    return str(caught.value)
