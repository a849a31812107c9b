"""Records what the product's own functions do in one process: who calls whom, or who has a value.

Installed by `hook/sitecustomize.py` where `CARFT_WALK` names a file; all processes append to it, a
line of JSON an event, with the system's monotonic clock.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PRODUCT = "carft_sweep"
PACKAGES = ("carft_core", "sweeps", "tracking")
LOGGED = 2995 / 4096
"""What the probe logs: no accuracy of a run, and exact as a mean of 32-bit floats."""
_OPTIMIZED = 0x01
"""Of the code of functions; bodies of classes and modules lack it."""
_GENERATOR = 0x20
_DEPTH = 5
_MOST = 200
_HOLD_SECONDS = 60.0


class Function(NamedTuple):
    """One of ours, or a generated constructor."""

    file: str
    name: str
    generated: bool

    @property
    def label(self) -> str:
        """`file:Class.function`; a constructor is `file:Class`."""
        return f"{self.file}:{self.name.removesuffix('.__init__')}"


_functions: dict[tuple[CodeType, str], Function | None] = {}
"""By code and module: the constructors of two data classes may have equal code."""


def function_of(frame: FrameType) -> Function | None:
    """The product's function of a frame; None for foreign and nameless code."""
    key = frame.f_code, str(frame.f_globals.get("__name__", ""))
    if key not in _functions:
        _functions[key] = _function(frame)
    return _functions[key]


def _function(frame: FrameType) -> Function | None:
    code = frame.f_code
    module = str(frame.f_globals.get("__name__", ""))
    if not code.co_flags & _OPTIMIZED or code.co_name.startswith("<"):
        return None
    if code.co_filename == "<string>":
        if module.partition(".")[0] != PRODUCT or code.co_name != "__init__":
            return None
        file = frame.f_globals.get("__file__", "")
        name = f"{type(frame.f_locals.get('self')).__name__}.__init__"
        return Function(_relative(file), name, generated=True)
    file = _relative(code.co_filename)
    if not file or _is_property(frame):
        return None
    return Function(file, code.co_qualname, generated=False)


def _is_property(frame: FrameType) -> bool:
    """Whether the function is read as an attribute: that is no call to who reads the code."""
    owner = frame.f_locals.get("self")
    found = inspect.getattr_static(type(owner), frame.f_code.co_name, None)
    return isinstance(found, (property, functools.cached_property))


def _relative(file: str) -> str:
    """The path of a file of the three packages below the repository's root, else an empty text."""
    try:
        path = Path(file).resolve().relative_to(ROOT)
    except ValueError:
        return ""
    return path.as_posix() if path.parts[0] in PACKAGES else ""


_begins: dict[CodeType, int] = {}
"""Where the frame of a generator function stands when it begins."""


def _is_imported(frame: FrameType) -> bool:
    """Whether the frame is the body of a module of ours, other than the one that Python runs."""
    if frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") == "__main__":
        return False
    return bool(_relative(frame.f_code.co_filename))


def _is_resumed(frame: FrameType) -> bool:
    """Whether the call of a generator function goes on behind a `yield`."""
    code = frame.f_code
    if not code.co_flags & _GENERATOR:
        return False
    return frame.f_lasti != _begins.setdefault(code, frame.f_lasti)


def mark(name: str, **fields: Any) -> None:
    """Record that something has happened."""
    _write({"mark": name, **fields})


def _call(function: Function, caller: Function | None) -> dict[str, Any]:
    """What every record says of a call."""
    return {
        "function": function.label,
        "file": function.file,
        "generated": function.generated,
        "caller": caller and caller.label,
        "caller_file": caller and caller.file,
    }


def _write(event: Mapping[str, Any]) -> None:
    target = os.environ.get("CARFT_WALK")
    if not target:
        return
    line = {
        "at": time.monotonic_ns(),
        "pid": os.getpid(),
        "main": threading.current_thread() is threading.main_thread(),
        **event,
    }
    with open(target, "ab", buffering=0) as file:  # noqa: PTH123 - one write a line, by any process
        file.write((json.dumps(line) + "\n").encode())


def install() -> None:
    """Profile this process, every thread of it, from now on."""
    value = os.environ.get("CARFT_WALK_VALUE")
    recorder = _Calls() if value is None else _Values(float(value))
    threading.setprofile(recorder)
    sys.setprofile(recorder)


class _Calls:
    """Records each call of a function of ours with its nearest caller of ours."""

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """A profile function."""
        del value
        if event == "call":
            if frame.f_code is subprocess.Popen.__init__.__code__:
                mark("process")
            self._called(frame)
        elif event == "return":
            function = function_of(frame)
            if function is not None and frame.f_code.co_name == "finished":
                caller = _caller(frame)
                if caller is not None and caller.file.startswith("sweeps/engines/"):
                    mark("finished")

    def _called(self, frame: FrameType) -> None:
        function = function_of(frame)
        if function is None or _is_resumed(frame):
            return
        caller, validated = None, False
        back = frame.f_back
        while back is not None and caller is None:
            if _is_imported(back):
                return
            caller = function_of(back)
            validated |= str(back.f_globals.get("__name__", "")).startswith("pydantic")
            back = back.f_back
        _write({**_call(function, caller), "validated": validated})


class _Values:
    """Records each function of ours that takes or returns a number, and who passes it on."""

    def __init__(self, value: float) -> None:
        self._value = value
        self._texts = (repr(value), repr(value).encode())
        self._arrived = threading.Event()
        self._inside = threading.local()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """A profile function."""
        if event not in ("call", "return") or getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            self._seen(frame, event, value)
        finally:
            self._inside.busy = False

    def _seen(self, frame: FrameType, event: str, value: Any) -> None:
        function = function_of(frame)
        if function is None:
            self._foreign(frame, event)
            return
        held = _arguments(frame) if event == "call" else [value]
        if not any(self._holds(item, _DEPTH) for item in held):
            if event == "return":
                self._hold(frame)
            return
        caller = _caller(frame)
        _write(
            {
                **_call(function, caller),
                "event": event,
                "plain": any(self._holds(item, _DEPTH, plain=True) for item in held),
            }
        )
        if event == "return":
            self._hold(frame)

    def _foreign(self, frame: FrameType, event: str) -> None:
        """The ends of two walks: MLflow's client, and an optimiser of torch."""
        module, name = str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        if event != "call":
            return
        if name == "log_batch" and module.startswith("mlflow"):
            ended = "tracked"
        elif name == "__init__" and module.startswith("torch.optim"):
            ended = "optimiser"
        else:
            return
        if any(self._holds(item, _DEPTH) for item in _arguments(frame)):
            caller = _caller(frame)
            mark(ended, caller=caller and caller.label)
            self._arrived.set()

    def _hold(self, frame: FrameType) -> None:
        """Let an engine wait until the report of an epoch is in MLflow: one value at a time."""
        if frame.f_code.co_name != "reported" or self._value != LOGGED:
            return
        caller = _caller(frame)
        if caller is None or not caller.file.startswith("sweeps/engines/"):
            return
        if any(self._holds(item, _DEPTH) for item in _arguments(frame)):
            self._arrived.wait(_HOLD_SECONDS)

    def _holds(self, item: Any, depth: int, *, plain: bool = False) -> bool:
        """Whether the number is in it: in text, in containers, or (not `plain`) in our objects."""
        if isinstance(item, float):
            return item == self._value
        if isinstance(item, str):
            return self._texts[0] in item
        if isinstance(item, bytes):
            return self._texts[1] in item
        if depth == 0 or isinstance(item, type):
            return False
        if isinstance(item, Mapping):
            inside = list(item.values())[:_MOST]
        elif isinstance(item, (list, tuple, set, frozenset)):
            inside = list(item)[:_MOST]
        elif not plain and type(item).__module__.startswith((PRODUCT, "mlflow.entities")):
            inside = list(getattr(item, "__dict__", {}).values())[:_MOST]
        else:
            return False
        return any(self._holds(part, depth - 1, plain=plain) for part in inside)


def _arguments(frame: FrameType) -> list[Any]:
    """What a function got, without the object that it is a method of."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    names = code.co_varnames[:count]
    values = frame.f_locals
    return [values[name] for name in names if name in values and name not in ("self", "cls")]


def _caller(frame: FrameType) -> Function | None:
    back = frame.f_back
    while back is not None:
        function = function_of(back)
        if function is not None:
            return function
        back = back.f_back
    return None
