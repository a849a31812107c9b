"""The options of `submit`: what is sent, what the job gets, and what is asked of a job."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

EMITTED = ("rayjob",)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    parser.usage = "%(prog)s FILE --address http://HOST:8265 [options] [-- options of run]"
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="a sweep file, or a shipped recipe's name"
    )
    parser.add_argument(
        "--address", metavar="URL", help="of the head's dashboard (RAY_API_SERVER_ADDRESS)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _of_jobs(parser)
    _of_the_sweep(parser)
    _of_the_bundle(parser)
    _of_the_environment(parser)
    _of_kubernetes(parser)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `submit`, and those behind `--`, which are for `run`; argparse knows no such
    thing. Of other commands all words are their own.
    """
    words = list(arguments)
    if "--" not in words or "submit" not in words[: words.index("--")]:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _of_jobs(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--no-wait", action="store_true", help="only submit, and print the job's id")
    asked.add_argument("--status", metavar="ID", help="how a job stands")
    asked.add_argument("--logs", metavar="ID", help="what a job has printed")
    asked.add_argument("--stop", metavar="ID", help="let a job end, so that it can go on later")
    asked.add_argument("--list", action="store_true", help="the sweeps that were submitted")
    asked.add_argument(
        "--emit", choices=EMITTED, help="write a manifest for KubeRay instead of submitting"
    )
    parser.add_argument(
        "--follow", action="store_true", help="with --logs: until the job ends, with its exit code"
    )


def _of_the_sweep(parser: argparse.ArgumentParser) -> None:
    for option, metavar, told, dest in (
        ("--set", "KEY=VALUE", "change a key of the file; repeatable", "overrides"),
        ("--profile", "NAME", "changes that the file keeps; repeatable", "profiles"),
        ("--import", "MODULE", "a module or file of your own; repeatable", "imports"),
    ):
        parser.add_argument(
            option, metavar=metavar, action="append", default=[], dest=dest, help=told
        )
    parser.add_argument("--parallel", metavar="N", help="most runs at once")
    parser.add_argument("--timeout", metavar="TIME", help="a run that takes longer has failed")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data lie on the cluster")
    parser.add_argument("--fresh", action="store_true", help="train every run again")
    parser.add_argument("--quiet", action="store_true", help="no progress in the job's log")


def _of_the_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only-committed", action="store_true", help="send what is committed and nothing else"
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="files or folders that are not sent; repeatable",
    )
    parser.add_argument(
        "--max-bundle",
        metavar="SIZE",
        type=_size,
        default=_size("100MB"),
        help="most that is sent (100MB)",
    )


def _of_the_environment(parser: argparse.ArgumentParser) -> None:
    for option, metavar, told in (
        ("--pip", "PACKAGE|FILE", "install it for the job; repeatable"),
        ("--env", "NAME=VALUE", "a variable of the job; repeatable"),
        ("--secret", "NAME=PATH", "a secret that lies in a file on the cluster; repeatable"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=told)
    parser.add_argument(
        "--python", metavar="PATH", default="python", help="of the cluster, for the driver (python)"
    )


def _of_kubernetes(parser: argparse.ArgumentParser) -> None:
    told = parser.add_argument_group("with --emit rayjob")
    told.add_argument("--out", metavar="FILE", help="where to write the manifest (printed)")
    told.add_argument("--image", metavar="NAME", help="of the pods; it has carft-sweep and Ray")
    told.add_argument(
        "--working-dir", metavar="URI", help="an archive with your files: https://....zip, s3://..."
    )
    told.add_argument("--claim", metavar="NAME", default="carft-home", help="the home's volume")
    told.add_argument("--memory", metavar="SIZE", default="16Gi", help="of a worker pod (16Gi)")
    told.add_argument("--workers", metavar="N", type=_count, help="pods (enough for `parallel`)")
    told.add_argument("--cluster", metavar="NAME", help="a RayCluster that is there already")


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})\s*([KMG]B)?", text.upper())
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a size like 50MB, got {text!r}")
    return int(found[1]) * _UNITS[found[2] or ""]


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)
