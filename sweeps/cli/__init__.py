"""The command line: `carft-sweep COMMAND`."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli.parser import parse
from carft_sweep.sweeps.secrets import read_secret_files
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import stay_private


class Emit(Protocol):
    """Prints a result of a command."""

    def __call__(self, text: str, /, *, styled: bool = False) -> None:
        """Print a text; `styled` says that PlainConsole rendered it, with our own escape codes."""


FAILED = 1
INTERRUPTED = 3
UNREACHABLE = 4
WRONG = 2
MODULES = {
    "list": "status",
    "watch": "status",
    "report": "compare",
    "predict": "export",
    "clean": "removal",
    "pause": "control",
    "remove": "removal",
    "set": "control",
    "stop": "control",
}
"""The module of each command that does not have its name. Only the requested one is imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done; 1 no run succeeded; 2 the request is wrong; 3
    interrupted and resumable; 4 a service is unreachable."""
    stay_private()
    # Objects of modules live until the process ends. For the garbage collector to search them takes
    # a fifth of the time of the imports, and 1.5 s at the end.
    gc.set_threshold(50_000)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        read_secret_files()
        with _logging(arguments.verbose):
            name = MODULES.get(arguments.command, arguments.command)
            module = importlib.import_module(f"carft_sweep.sweeps.cli.{name}")
            command = getattr(module, f"{arguments.command}_command")
            code: int | None = command(arguments, _emit)
    except SystemExit as leaving:  # argparse's way to say 0 or 2, and SIGTERM's in `ui`
        return leaving.code if isinstance(leaving.code, int) else WRONG
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not try to write the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, no permission
        return _report_error(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RequestError, TrackingError, AccessDenied) as error:
        return _report_error(error, WRONG)
    except ServiceUnreachable as error:
        return _report_error(error, UNREACHABLE)
    return code or 0


class _StandardError(logging.Handler):
    """Writes to the standard error of the moment: a live display redirects it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record to standard error."""
        sys.stderr.write(f"{_printable(self.format(record))}\n")


@contextlib.contextmanager
def _logging(verbosity: int) -> Iterator[None]:
    """Log messages of this package within the context: at INFO with -v, at DEBUG with -vv."""
    if not verbosity:
        yield
        return
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("carft_sweep")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def _emit(text: str, /, *, styled: bool = False) -> None:
    # At once, also into a pipe: `ui` and `run` continue for long after what they print.
    print(text if styled else _printable(text), flush=True)


def _printable(text: str) -> str:
    from carft_sweep.tracking.console import printable  # which imports rich: not for --help

    return printable(text)


def _report_error(error: Exception, code: int) -> int:
    text = "\n".join([f"carft-sweep: {error}", *getattr(error, "__notes__", ())])
    print(_printable(text), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
