"""Groups and progress reports of workers reach their trainer, and messages of other senders have no effect."""

import ast
import asyncio
import json
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

import rgtrain
from rgtrain.errors import ConfigError
from rgtrain.jobs import watchdog
from rgtrain.jobs.activity import Activity
from rgtrain.training.rollout import channel as channel_module
from rgtrain.training.rollout.channel import Arrival, Arrivals, Endpoint, TrainerLink, WorkerChannel
from rgtrain.training.rollout.groups import Group, GroupLimits, MalformedMessage, PartKey, WorkerPlace, encode_group

LIMITS = GroupLimits(vocabulary_size=100, max_response_tokens=8, max_group_size=1000)
GROUP = Group("u0", responses=[[5, 6, 7], [99]], log_probs=[np.float32([-1, 0, -0.25]), np.float32([-3])], version=4)


@contextmanager
def opened(tmp_path: Path, *, host: str | None = None) -> Iterator[SimpleNamespace]:
    """Yield a channel and its reports. It uses a Unix socket, or encrypted TCP if `host` is given."""
    places, warnings = [], []
    address = {"host": host} if host else {"folder": tmp_path}
    channel = WorkerChannel(LIMITS, **address, moved=places.append, warn=warnings.append)
    try:
        yield SimpleNamespace(channel=channel, places=places, warnings=warnings, endpoint=channel.endpoint)
    finally:
        channel.close()


@contextmanager
def linked(endpoint: Endpoint) -> Iterator[TrainerLink]:
    link = TrainerLink()
    link.connect(endpoint, worker=3)
    try:
        yield link
    finally:
        link.close()


@contextmanager
def raw(address: str, **options: object) -> Iterator[zmq.Socket]:
    """Yield the socket of a sender that knows the address."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        for name, value in {"linger": 0, **options}.items():
            setattr(socket, name, value)
        socket.connect(address)
        yield socket


@contextmanager
def awaiting(opened_channel: SimpleNamespace, *uids: str, num_completions: int = 2) -> Iterator[Arrivals]:
    with opened_channel.channel.awaiting() as arrivals:
        for uid in uids:
            arrivals.expect(PartKey(uid, 0), num_completions)
        yield arrivals


async def arrival_of(arrivals: Arrivals) -> Arrival:
    return await asyncio.wait_for(arrivals.get(), timeout=60)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_group(arrival: Group | MalformedMessage) -> bool:
    """Return whether the arrival equals GROUP."""
    assert isinstance(arrival, Group), arrival
    assert (arrival.uid, arrival.responses, arrival.version) == (GROUP.uid, GROUP.responses, GROUP.version)
    return all(np.array_equal(a, b) for a, b in zip(arrival.log_probs, GROUP.log_probs, strict=True))


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_a_group_arrives_as_it_was_sent(tmp_path, host):
    async def run(opened_channel, link):
        with awaiting(opened_channel, "u0", "u1") as arrivals:
            link.send(GROUP)
            return await arrival_of(arrivals)

    with opened(tmp_path, host=host) as opened_channel, linked(opened_channel.endpoint) as link:
        assert is_group(asyncio.run(run(opened_channel, link)))
        assert opened_channel.warnings == []


class Bomb:
    """An object whose pickle creates a folder when it is read."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self._folder),)


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_a_sender_without_the_token_can_neither_run_code_nor_replace_a_group(tmp_path, host):
    bomb = pickle.dumps([Bomb(tmp_path / "exploded")])
    forged = [[bomb], [b"", bomb], [bytes(32), *encode_group(GROUP)], encode_group(GROUP), [b"x" * 32]]

    async def run(opened_channel, link):
        with awaiting(opened_channel, "u0") as arrivals:
            endpoint, keys = opened_channel.endpoint, {}
            if host:
                # This sender knows the trainer's key but not the token.
                public_key, secret_key = zmq.curve_keypair()
                keys = {"curve_serverkey": endpoint.server_key}
                keys |= {"curve_publickey": public_key, "curve_secretkey": secret_key}
            with raw(endpoint.address, **keys) as socket:
                for message in forged * 2:
                    socket.send_multipart(message)
                await asyncio.to_thread(until, lambda: opened_channel.channel.num_dropped == 2 * len(forged))
            link.send(GROUP)
            return await arrival_of(arrivals)

    with opened(tmp_path, host=host) as opened_channel, linked(opened_channel.endpoint) as link:
        assert is_group(asyncio.run(run(opened_channel, link)))
        assert len(opened_channel.warnings) == 1
        assert "without this run's token" in opened_channel.warnings[0]
    assert not (tmp_path / "exploded").exists()


def test_over_a_network_a_sender_needs_the_trainers_public_key(tmp_path):
    async def run(opened_channel, link):
        endpoint = opened_channel.endpoint
        public_key, secret_key = zmq.curve_keypair()
        wrong = {"curve_serverkey": public_key, "curve_publickey": public_key, "curve_secretkey": secret_key}
        with awaiting(opened_channel, "u0") as arrivals:
            with raw(endpoint.address) as plain, raw(endpoint.address, **wrong) as curved:
                for socket in (plain, curved):
                    # The token is right, but without the key the message is not even read.
                    socket.send_multipart([endpoint.token, *encode_group(GROUP)])
                await asyncio.sleep(0.5)
                assert arrivals._queue.empty()
            link.send(GROUP)
            return await arrival_of(arrivals)

    with opened(tmp_path, host="127.0.0.1") as opened_channel, linked(opened_channel.endpoint) as link:
        assert is_group(asyncio.run(run(opened_channel, link)))
        assert opened_channel.channel.num_dropped == 0


def test_a_repeated_or_unexpected_group_is_dropped(tmp_path):
    async def run(opened_channel, link):
        with awaiting(opened_channel, "u0", "u1") as arrivals:
            for uid in ("u0", "u0", "u2", "u1"):
                link.send(Group(uid, GROUP.responses, GROUP.log_probs, GROUP.version))
            return [(await arrival_of(arrivals)).uid for _ in range(2)]

    with opened(tmp_path) as opened_channel, linked(opened_channel.endpoint) as link:
        assert asyncio.run(run(opened_channel, link)) == ["u0", "u1"]
        assert opened_channel.channel.num_dropped == 2
        assert len(opened_channel.warnings) == 1 and "not awaited" in opened_channel.warnings[0]


def test_completions_of_a_part_are_reported_and_its_group_may_have_other_parts(tmp_path):
    async def run(opened_channel, link):
        with opened_channel.channel.awaiting() as arrivals:
            arrivals.expect(PartKey("u0", 0), 3)
            arrivals.expect(PartKey("u0", 3), 2)
            with pytest.raises(ValueError, match="already awaited"):
                arrivals.expect(PartKey("u0", 3), 2)
            # The part with the number 2 was not requested.
            for first in (0, 2, 0):
                link.report_completion(PartKey("u0", first))
            for first in (3, 3, 2):
                link.send(replace(GROUP, first=first))
            link.report_completion(PartKey("u0", 0))
            return [await arrival_of(arrivals) for _ in range(4)]

    with opened(tmp_path) as opened_channel, linked(opened_channel.endpoint) as link:
        *reported, part, error = asyncio.run(run(opened_channel, link))
        assert reported == [PartKey("u0", 0)] * 2
        assert is_group(part) and part.key == PartKey("u0", 3)
        assert "the group 'u0' reports more completions than the requested ones" in str(error)
        assert opened_channel.channel.num_dropped == 3


def test_parts_are_joined_in_the_order_of_their_numbers():
    parts = [replace(GROUP, first=first, responses=[[first], [7]]) for first in (2, 0, 4)]
    assert Group.joined(parts).responses == [[0], [7], [2], [7], [4], [7]]
    assert len(Group.joined(parts).log_probs) == 6 and Group.joined(parts).key == PartKey("u0", 0)
    for changed, error in [
        ({"first": 1}, "overlap or leave a gap"),
        ({"first": 3}, "overlap or leave a gap"),
        ({"version": 5}, r"have the versions \[4, 5\]"),
    ]:
        with pytest.raises(MalformedMessage, match=error):
            Group.joined([replace(parts[0], **changed), parts[1]])


def altered(**changes) -> list:
    """Return GROUP's frames with parts of the header or whole frames replaced."""
    header, lengths, tokens, log_probs = encode_group(GROUP)
    fields = json.loads(header) | {
        name: value for name, value in changes.items() if name in ("uid", "first", "version", "kind")
    }
    frames = {"header": json.dumps(fields).encode(), "lengths": lengths, "tokens": tokens, "log_probs": log_probs}
    return list((frames | {name: value for name, value in changes.items() if name in frames}).values())


INT, FLOAT = np.int32, np.float32


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([], "not JSON"),
        ([b"\xff\xfe"], "not JSON"),
        ([b"[" * 4000], "not JSON"),
        ([b"[" * 500 + b"]" * 500], "of the kind None"),
        ([b'{"kind": %s}' % (b"[" * 400 + b"]" * 400)], "of the kind list"),
        ([b" " * 5000], "5000 bytes; at most 4096"),
        ([b"null"], "of the kind None; known kinds are group, completion, place"),
        (altered(kind="pickle"), "of the kind 'pickle'"),
        (altered(kind="place"), "must have the fields worker, stage, done, total"),
        (altered(uid=7), "uid in a header of the kind group is 7"),
        (altered(first=-1), "first in a header of the kind group is -1"),
        (altered(version=-1), "version in a header of the kind group is -1"),
        (altered(version=True), "is True"),
        (altered(version=10**300), "is 1000"),
        ([b'{"kind": "completion", "uid": "u0", "first": 0}', b""], "a finished completion has 1 buffers"),
        ([b'{"kind": "completion", "uid": "u0"}'], "must have the fields uid, first"),
        (altered()[:3], "the group 'u0' has 2 buffers; it must have 3"),
        ([*altered(), b""], "has 4 buffers"),
        (altered(lengths=INT([3])), "has 1 completions; 2 were requested"),
        (altered(lengths=INT([3, 1, 0])), "has 3 completions; 2 were requested"),
        (altered(lengths=b"\0" * 7), "has 1.75 completions"),
        (altered(lengths=INT([4, 0])), "has completions of 0 to 4 tokens; 1 to 8 are allowed"),
        (altered(lengths=INT([-1, 5])), "has completions of -1 to 5 tokens"),
        (altered(lengths=INT([3, 9])), "has completions of 3 to 9 tokens"),
        (altered(lengths=INT([3, 2])), "has 16 bytes of token ids; 5 tokens need 4 each"),
        (altered(tokens=INT([5, 6, 7])), "has 12 bytes of token ids"),
        (
            altered(tokens=INT([5, 6, 7, 100])),
            "has token ids from 5 to 100; only ids from 0 to 99 are in the vocabulary",
        ),
        (altered(tokens=INT([5, 6, 7, -1])), "has token ids from -1 to 7"),
        (altered(log_probs=b""), "has 0 bytes of log-probabilities"),
        (altered(log_probs=FLOAT([-1, -1, -1, np.nan])), "not finite or is above 0"),
        (altered(log_probs=FLOAT([-1, -1, -1, -np.inf])), "not finite or is above 0"),
        (altered(log_probs=FLOAT([-1, -1, -1, 0.5])), "not finite or is above 0"),
    ],
)
def test_a_malformed_message_of_a_worker_is_an_error_that_names_the_fault(tmp_path, message, reason):
    async def run(opened_channel, socket):
        with awaiting(opened_channel, "u0") as arrivals:
            socket.send_multipart([opened_channel.endpoint.token, *message])
            return await arrival_of(arrivals)

    with opened(tmp_path) as opened_channel, raw(opened_channel.endpoint.address) as socket:
        error = asyncio.run(run(opened_channel, socket))
    assert isinstance(error, MalformedMessage)
    assert reason in str(error)


def test_a_message_larger_than_any_group_is_not_read_into_memory(tmp_path):
    async def run(opened_channel, link):
        with awaiting(opened_channel, "u0") as arrivals:
            with raw(opened_channel.endpoint.address) as socket:
                socket.send_multipart([opened_channel.endpoint.token, *altered(tokens=bytes(10**7))])
                await asyncio.sleep(0.3)
                assert arrivals._queue.empty()
            link.send(GROUP)
            return await arrival_of(arrivals)

    with opened(tmp_path) as opened_channel, linked(opened_channel.endpoint) as link:
        assert is_group(asyncio.run(run(opened_channel, link)))


def test_a_folder_that_other_users_can_enter_is_refused(tmp_path):
    tmp_path.chmod(0o711)
    with pytest.raises(ConfigError, match="mode 0700"), opened(tmp_path):
        pass


def test_secrets_are_not_printed(tmp_path):
    with opened(tmp_path, host="127.0.0.1") as opened_channel:
        endpoint = opened_channel.endpoint
        assert repr(endpoint) == f"Endpoint(address={endpoint.address!r})"


def test_reports_of_progress_are_limited_in_frequency(tmp_path, monkeypatch):
    monkeypatch.setattr(channel_module, "_REPORT_EVERY_SECONDS", 0.2)
    with opened(tmp_path) as opened_channel, linked(opened_channel.endpoint) as link:
        started = time.monotonic()
        for number in range(1, 1001):
            link.moved("micro-batch", number, 1000)
            time.sleep(0.0005)
        num_allowed = 1 + (time.monotonic() - started) / 0.2
        until(lambda: opened_channel.places)
        time.sleep(0.1)
        assert 1 <= len(opened_channel.places) <= num_allowed
        assert opened_channel.places[0] == WorkerPlace(worker=3, stage="micro-batch", done=1, total=1000)
        assert [str(place) for place in opened_channel.places[:1]] == ["micro-batch 1 of 1000"]


def test_reports_are_dropped_without_waiting_if_no_trainer_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(channel_module, "_REPORT_EVERY_SECONDS", 0)
    link = TrainerLink()
    link.moved("completion", 1, 2)
    with linked(Endpoint(f"ipc://{tmp_path}/nobody", b"t" * 32)) as link:
        # More reports than the queue holds.
        for number in range(5000):
            link.moved("weight", number)


def test_a_long_phase_lasts_only_as_long_as_its_worker_reports_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(channel_module, "_REPORT_EVERY_SECONDS", 0.1)
    activity, said, ended = Activity({"update_actor": "update"}), [], []
    places = SimpleNamespace(append=lambda place: activity.moved(str(place), source=f"worker {place.worker}"))
    channel = WorkerChannel(LIMITS, folder=tmp_path, moved=places.append, warn=said.append)
    with (
        linked(channel.endpoint) as link,
        watchdog.watched(
            activity,
            report_after_s=1,
            end_after_s=2,
            end=lambda reason, code: ended.append(reason),
            announce=said.append,
        ),
        activity.within("update_actor"),
    ):
        activity.step = 7
        # One call, longer than both limits.
        for number in range(1, 31):
            link.moved("micro-batch", number, 30)
            time.sleep(0.1)
        assert said == ended == []
        until(lambda: ended)
    channel.close()
    assert len(said) == 1 and said[0].startswith("update of step 7 has stood still for 1 s at micro-batch ")
    assert ended[0].startswith("ended: update of step 7 stood still for 2 s at micro-batch ")


# The modules that may read pickles, with the reason why that is safe.
PICKLE_READERS = {
    "checkpoints/shards/unpickling.py": "catches pickle's errors; torch reads the file with its allowlist",
    "checkpoints/pickle_check.py": "catches pickle's errors; torch reads the file with its allowlist",
    "problems/own_rewards.py": "writes its arguments to see their size; it reads none",
    "problems/scoring/scoring_worker.py": "a socket pair shared with the process that it forked",
    "problems/scoring/forking.py": "a socket pair shared with the process that it started",
    "problems/scoring/server.py": "a socket pair shared with the process that started it",
}
PICKLING_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}


def test_no_other_module_reads_pickles():
    package = Path(rgtrain.__file__).parent
    readers = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            names = {node.attr} if isinstance(node, ast.Attribute) else set()
            if PICKLING_MODULES & {name.split(".")[0] for name in modules} or names & {"recv_pyobj", "send_pyobj"}:
                readers.add(str(path.relative_to(package)))
    assert readers == set(PICKLE_READERS)
