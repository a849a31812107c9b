"""`carft-sweep submit FILE`: send a sweep to a Ray cluster from outside, and follow its job."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import INTERRUPTED, Emit
from carft_sweep.sweeps.cli.parser import overrides, parse
from carft_sweep.sweeps.scheduler.progress import to_stderr
from carft_sweep.sweeps.spec.spec import is_recipe, load_spec, locate
from carft_sweep.sweeps.spec.user_code import resolve
from carft_sweep.sweeps.submit.client import JobClient, exit_code, unencrypted
from carft_sweep.sweeps.submit.submission import Submission, send
from carft_sweep.tracking.errors import ServiceUnreachable
from carft_sweep.tracking.location import HOME_VARIABLE
from carft_sweep.tracking.ownership import TRUST_OPTION


def submit_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run `submit` and return its exit code. Raises RequestError and ServiceUnreachable."""
    submission = load_submission(arguments)
    if warning := unencrypted(arguments.address):
        to_stderr(warning)
    client = JobClient(arguments.address)
    id_ = send(
        client, submission, exclude=arguments.exclude, assignments=arguments.env, note=to_stderr
    )
    if arguments.no_wait:
        emit(json.dumps({"id": id_, "address": client.shown}) if arguments.json else id_)
        return 0
    to_stderr(f"{id_} is submitted. Ctrl-C leaves it running.")
    return _follow(client, id_, emit, as_json=arguments.json)


def load_submission(arguments: argparse.Namespace) -> Submission:
    """Return the sweep to submit, with all its options of `run`. Raises RequestError."""
    home = arguments.home or os.environ.get(HOME_VARIABLE)
    if not home:
        raise RequestError(
            "where is the home? Give an absolute path that every node of the cluster sees, with "
            f"--home or {HOME_VARIABLE}"
        )
    options = [word for text in arguments.overrides for word in ("--set", text)]
    options += [word for name in arguments.profiles for word in ("--profile", name)]
    options += [TRUST_OPTION] if arguments.trust_home else []
    options += arguments.more
    run = parse(["run", arguments.file, *options])
    if run.in_process or run.address:
        raise RequestError("a job runs on its cluster: no --in-process and no --address for it")
    if run.home:
        raise RequestError("--home goes before `--`")
    imports = resolve([*arguments.imports, *run.imports], Path.cwd())
    if not home.startswith("/"):
        raise RequestError(
            f"the home {home} must be an absolute path that every node of the cluster sees"
        )
    spec, path = load_spec(arguments.file, overrides(run), imports), locate(arguments.file)
    if spec.engine == "local":
        raise RequestError("engine: local would leave the cluster idle; say auto or ray")
    file = path.stem if is_recipe(path) and not Path(arguments.file).is_file() else path
    return Submission(spec, file, imports, home, tuple(options))


def _follow(client: JobClient, id_: str, emit: Emit, *, as_json: bool) -> int:
    ray = f"ray job logs --address {client.shown} --follow {id_}"
    try:
        job = client.follow(id_, to_stderr if as_json else emit)
    except KeyboardInterrupt:
        stop = f"ray job stop --address {client.shown} {id_}"
        to_stderr(f"{id_} continues. To follow it: {ray}. To stop it: {stop}")
        return INTERRUPTED
    except ServiceUnreachable as error:
        error.add_note(f"The job may continue. To follow it: {ray}")
        raise
    code = exit_code(job)
    message = (job.message or "").strip()
    if as_json:
        result = {"id": id_, "status": job.status.value, "message": message}
        emit(json.dumps({**result, "address": client.shown, "exit_code": code}, indent=1))
    to_stderr(f"{id_} is {job.status.value.lower()}." + (f" {message}" if code else ""))
    return code
