"""`carft-sweep submit FILE`: send a sweep to a Ray cluster from outside, and follow its job."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from carft_core.errors import RequestError
from sweeps.submit.client import Follower, Job, JobsApi, api_address, stopping
from sweeps.submit.package import requirements, runtime_env
from sweeps.submit.rayjob import Cluster, manifest
from sweeps.submit.submission import Request, check_version, commit_of, environment, metadata, send
from tracking.errors import ServiceUnreachable

Say = Callable[[str], None]
DETACHED = 3


def submit_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError and ServiceUnreachable."""
    _check(arguments)
    if arguments.emit:
        return _emit(arguments, say)
    api = JobsApi(api_address(arguments.address))
    if arguments.list:
        return _list(api, arguments, say)
    if arguments.status:
        return _status(api.job(arguments.status), arguments, say)
    if arguments.stop:
        return _stop(api, arguments, say)
    if arguments.logs and not arguments.follow:
        say(api.logs(api.job(arguments.logs).id).rstrip("\n"))
        return 0
    if arguments.logs:
        return _follow(api, arguments.logs, arguments, say)
    id_ = send(api, Request.of(arguments), arguments, _note)
    if arguments.no_wait:
        say(json.dumps({"id": id_, "address": api.shown}) if arguments.json else id_)
        return 0
    _note(f"{id_} is submitted. Ctrl-C leaves it running.")
    return _follow(api, id_, arguments, say)


def _check(arguments: argparse.Namespace) -> None:
    asked = arguments.status or arguments.logs or arguments.stop or arguments.list
    if asked and arguments.file is not None:
        raise RequestError(f"{arguments.file}: a job that is there is asked for by its id alone")
    if arguments.follow and not arguments.logs:
        raise RequestError("--follow goes with --logs ID")
    if arguments.emit:
        return
    if arguments.image:
        raise RequestError(
            "--image goes with --emit rayjob. On a cluster that is there, Ray can start a job in "
            "an image of its own only without a working directory, and mounts no home in it: "
            "install carft-sweep on the nodes, submit from a clone of it, or use --pip"
        )
    for name in ("working_dir", "out", "cluster", "workers"):
        if getattr(arguments, name) is not None:
            raise RequestError(f"--{name.replace('_', '-')} goes with --emit rayjob")


def _note(text: str) -> None:
    # Standard output is the job's log, or the answer.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _follow(api: JobsApi, id_: str, arguments: argparse.Namespace, say: Say) -> int:
    line = _note if arguments.json else say
    follower = Follower(api, line, _note)
    try:
        job = follower.follow(id_)
    except KeyboardInterrupt:
        _note(f"{id_} goes on. {_again(api, id_)}")
        return DETACHED
    except ServiceUnreachable as error:
        error.add_note(f"The job may go on. {_again(api, id_)}")
        raise
    if arguments.json:
        say(json.dumps(job.as_dict(), indent=1))
    explained = job.explained(follower.log)
    if job.status == "FAILED" and not follower.log:
        _note(job.message.strip())
    _note(f"{id_} is {job.status.lower()}.{f' {explained}.' if explained else ''}")
    return job.exit_code or 0


def _again(api: JobsApi, id_: str) -> str:
    command = f"carft-sweep submit --address {api.shown}"
    return f"To follow it: {command} --logs {id_} --follow. To stop it: {command} --stop {id_}"


def _status(job: Job, arguments: argparse.Namespace, say: Say) -> int:
    if arguments.json:
        say(json.dumps(job.as_dict(), indent=1))
        return 0
    say(_line(job))
    explained = job.explained()
    if job.status == "FAILED":
        say(job.message.strip())
    if explained:
        say(f"{explained}.")
    return 0


def _list(api: JobsApi, arguments: argparse.Namespace, say: Say) -> int:
    jobs = [job for job in api.jobs() if job.sweep is not None]
    if arguments.json:
        say(json.dumps([job.as_dict() for job in jobs], indent=1))
        return 0
    for job in jobs:
        say(_line(job))
    if not jobs:
        say(f"No sweep was submitted to {api.shown}.")
    return 0


def _line(job: Job) -> str:
    parts = [job.id, job.status.lower()]
    if job.exit_code is not None:
        parts.append(f"exit code {job.exit_code}")
    parts += [f"sweep {job.sweep}"] if job.sweep else []
    parts += [f"by {job.user}"] if job.user else []
    if job.began is not None:
        parts.append(f"since {time.strftime('%Y-%m-%d %H:%M', time.localtime(job.began))}")
    return "  ".join(parts)


def _stop(api: JobsApi, arguments: argparse.Namespace, say: Say) -> int:
    job = api.job(arguments.stop)
    asked = not job.has_ended and api.stop(job.id)
    if arguments.json:
        say(json.dumps({"id": job.id, "asked": asked}))
    else:
        say(stopping(job.id) if asked else f"{job.id} is not running ({job.status.lower()}).")
    return 0


def _emit(arguments: argparse.Namespace, say: Say) -> int:
    request = Request.of(arguments)
    if arguments.image is None and arguments.cluster is None:
        raise RequestError("--emit rayjob: which image do the pods run? Give --image NAME")
    tree = request.tree(only_committed=arguments.only_committed)
    commit = commit_of(tree)
    given = environment(arguments, commit, [])
    pip = requirements(arguments.pip)
    made = manifest(
        request.spec,
        request.entrypoint(tree.root, arguments.python),
        runtime_env(given, arguments.working_dir, pip),
        Cluster(
            image=arguments.image,
            home=request.home,
            claim=arguments.claim,
            ray_version=_ray_version(arguments),
            memory=arguments.memory,
            workers=arguments.workers,
            existing=arguments.cluster,
        ),
        metadata=metadata(request.spec, commit),
        secrets=arguments.secret,
    )
    text = yaml.safe_dump(made, sort_keys=False, width=100)
    if arguments.out is None:
        say(text.rstrip("\n"))
    else:
        Path(arguments.out).write_text(text, encoding="utf-8")
        _note(f"Written: {arguments.out}. Next: kubectl apply -f {arguments.out}")
    if arguments.working_dir is None and request.sweep_file is not None:
        _note(
            "No file is sent with a manifest: the image must have your repository as its working "
            "directory, or name an archive of it with --working-dir"
        )
    for note in given.notes:
        _note(note)
    named = {item.partition("=")[0] for item in arguments.secret}
    if missing := [name for name in given.kept if name not in named]:
        _note(f"Not written, since secret: {', '.join(missing)}. Give --secret NAME=SECRET/KEY")
    return 0


def _ray_version(arguments: argparse.Namespace) -> str:
    """Of the image: told by --address where there is such a cluster, else this machine's."""
    from importlib.metadata import version

    if arguments.address:
        return check_version(JobsApi(api_address(arguments.address)), _note)
    return version("ray")
