"""The command that serves problems and rewards over HTTP to the trainers of others."""

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rgtrain.config.default_experiment import default_experiment
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.jobs.signals import EXIT_INTERRUPTED, accepted_signals
from rgtrain.machine.environment import fix_hash_seed, require_stack
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process

if TYPE_CHECKING:
    from rgtrain.environments import TaskEnvironment

TOKEN_VARIABLE = "RGTRAIN_ENVIRONMENT_TOKEN"
_MIN_TOKEN_CHARS = 16
_DESCRIPTION = """\
Serve the problems and rewards of an experiment over HTTP, for trainers other than this one.

{program} --config quickstart
{program} --config quickstart mixture=math reward=accuracy seed=2

http://HOST:PORT/openapi.json describes the requests. docs/environments.md has examples.
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    options = _parser(program).parse_intermixed_args(arguments)
    require_stack()
    fix_hash_seed()
    clean_up_after_this_process()
    try:
        with exit_on_config_error():
            token = _token(options.token_file)
            _check_host(options.host, token)
            listener = None if options.write_nemo_gym is not None else _bind(options.host, options.port)
            # After the hash seed is fixed: this loads Reasoning Gym, and would load it twice.
            from rgtrain.environments import open_environment

            with open_environment(
                options.config, options.overrides, with_tokenizer=False if options.no_tokenizer else None
            ) as environment:
                for warning in environment.warnings:
                    print(f"warning: {warning}", file=sys.stderr, flush=True)
                if listener is None:
                    _write_inputs(environment, options)
                else:
                    with listener:
                        _serve(environment, options, token, listener)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", default=default_experiment(), metavar="NAME", help="an experiment or an experiment file"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in place of the experiment's own values")
    parser.add_argument(
        "--no-tokenizer",
        action="store_true",
        help="use prompts of any length; otherwise those that are too long for the experiment's model are replaced",
    )
    service = parser.add_argument_group("service")
    service.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    service.add_argument("--port", type=int, default=8000, help="0 chooses a free one (default: %(default)s)")
    service.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"the token that requests must carry, by default the environment variable {TOKEN_VARIABLE}",
    )
    service.add_argument("--state", type=Path, metavar="FILE.json", help="keep the state of the curriculum there")
    service.add_argument("--with-answers", action="store_true", help="give out problems with their expected answers")
    service.add_argument("--max-body-mb", type=_positive, default=32, metavar="N", help="(default: %(default)s)")
    service.add_argument("--max-batch", type=_positive, default=1024, metavar="N", help="(default: %(default)s)")
    service.add_argument(
        "--max-completion-chars", type=_positive, default=1_000_000, metavar="N", help="(default: %(default)s)"
    )
    service.add_argument("--max-concurrent", type=_positive, default=64, metavar="N", help="(default: %(default)s)")
    service.add_argument(
        "--deadline-s", type=_positive, default=60, metavar="N", help="seconds for a request (default: %(default)s)"
    )
    gym = parser.add_argument_group("NeMo Gym")
    gym.add_argument(
        "--write-nemo-gym", type=Path, metavar="FILE.jsonl", help="write NeMo Gym's inputs there instead of serving"
    )
    gym.add_argument(
        "--count", type=_positive, default=1000, metavar="N", help="number of inputs (default: %(default)s)"
    )
    gym.add_argument("--split", choices=("train", "validation"), default="train", help="(default: %(default)s)")
    gym.add_argument("--agent", default="rgtrain_agent", help="the agent in the configuration (default: %(default)s)")
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is given; give a whole number from 1 up")
    return value


def _token(file: Path | None) -> str | None:
    """Return the token in a file or in the environment, or None.

    A word of the command line would be visible to all users of the machine.

    Args:
        file: The file, or None for the environment variable.

    Returns:
        The token, or None.

    Raises:
        ConfigError: The file cannot be read, or the token is too short or has unusable characters.
    """
    token, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if file is not None:
        source = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the token file {source!r} cannot be read: {error}") from error
    if token is None:
        return None
    if len(token) < _MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token of {source} has {len(token)} characters or unusable ones; give at least {_MIN_TOKEN_CHARS} "
            "letters, digits or signs, without spaces"
        )
    return token


def _check_host(host: str, token: str | None) -> None:
    """Raise ConfigError if other machines could reach a service without a token."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if token is None and not is_loopback:
        raise ConfigError(
            f"--host {host} lets other machines reach the service, which has no token; give --token-file FILE, set "
            f"{TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )


def _serve(
    environment: "TaskEnvironment", options: argparse.Namespace, token: str | None, listener: socket.socket
) -> None:
    import uvicorn

    from rgtrain.environments.service.request_guard import HeaderDeadlineProtocol, ServiceLimits
    from rgtrain.environments.service.service_app import build_service
    from rgtrain.environments.service.service_state import ServiceState

    limits = ServiceLimits(
        max_body_bytes=options.max_body_mb << 20,
        max_batch=options.max_batch,
        max_completion_chars=options.max_completion_chars,
        max_concurrent=options.max_concurrent,
        deadline_s=options.deadline_s,
    )
    state = ServiceState(environment, options.state)
    environment.start_scoring()
    service = build_service(environment, state, token=token, limits=limits, with_answers=options.with_answers)
    server = uvicorn.Server(
        uvicorn.Config(
            service,
            http=HeaderDeadlineProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Each request ends by its deadline, so all of them end before this.
            timeout_graceful_shutdown=options.deadline_s + 5,
        )
    )

    def stop(number: int, frame: object) -> None:
        server.handle_exit(signal.Signals(number), None)

    # uvicorn takes these over while it runs. Then it repeats the signal, which must not end the process before its
    # state is saved.
    for number in accepted_signals():
        signal.signal(number, stop)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    datasets = ", ".join(spec.name for spec in environment.splits.training.mixture.specs)
    print(f"serving {datasets} on http://{shown}:{port}; Ctrl-C stops", flush=True)
    try:
        server.run(sockets=[listener])
    finally:
        state.close()
    print("stopped", flush=True)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address, so that a port in use is noticed before the problems are made."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"cannot listen on port {port} of {host} ({reason}); give another --host or --port"
        ) from error
    return listener


def _write_inputs(environment: "TaskEnvironment", options: argparse.Namespace) -> None:
    import json

    from rgtrain.environments.service.nemo_gym import inputs_row
    from rgtrain.files import write_atomically

    size = len(environment) if options.split == "train" else len(environment.validation)
    if options.count > size:
        raise ConfigError(
            f"--count is {options.count}, but there are {size} problems of this split; give at most {size}"
        )
    make = environment.problem if options.split == "train" else environment.validation.__getitem__
    rows = (
        inputs_row(problem, agent=options.agent, max_response_tokens=environment.config.data.max_response_length)
        for problem in map(make, range(options.count))
    )
    try:
        write_atomically(options.write_nemo_gym, (json.dumps(row).encode() + b"\n" for row in rows))
    except OSError as error:
        raise ConfigError(f"cannot write {str(options.write_nemo_gym)!r} ({error}); give another file") from error
    print(f"written: {options.write_nemo_gym} ({options.count} problems)")
