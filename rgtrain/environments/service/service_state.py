"""Count reports once each, and keep the state of the curriculum in a file."""

import fcntl
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rgtrain.environments.task_environment import GroupReport, TaskEnvironment
from rgtrain.errors import ConfigError
from rgtrain.files import remove_leftovers, write_atomically

# Names of reports that are remembered, so that a report that is sent again counts once.
_MAX_REPORT_IDS = 10_000


class ServiceState:
    """The curriculum of a service, saved after each report.

    Args:
        environment: The environment.
        path: The state file, which is created if it does not exist; None keeps the state in memory only.

    Raises:
        ConfigError: The file is damaged, belongs to another environment or is used by another service.
    """

    def __init__(self, environment: TaskEnvironment, path: Path | None = None):
        self._environment = environment
        self._path = path
        self._lock = threading.Lock()
        self._report_ids: OrderedDict[str, None] = OrderedDict()
        self._resources = ExitStack()
        if path is None:
            return
        self._lock_file(path)
        try:
            remove_leftovers(path.parent, [path.name])
            if path.exists():
                self._load(path)
        except BaseException:
            self._resources.close()
            raise

    def report(self, groups: Sequence[GroupReport], *, report_id: str | None = None) -> tuple[bool, dict[str, float]]:
        """Report the groups of a training step, and save the state before returning.

        Args:
            groups: The groups.
            report_id: A name of the report.

        Returns:
            Whether the report was counted, which it is only once, and the metrics of the curriculum.

        Raises:
            ConfigError: A group cannot be used.
        """
        with self._lock:
            if report_id is not None and report_id in self._report_ids:
                self._save()
                return False, self._environment.curriculum.metrics()
            metrics = self._environment.report(groups)
            if report_id is not None:
                self._report_ids[report_id] = None
                if len(self._report_ids) > _MAX_REPORT_IDS:
                    self._report_ids.popitem(last=False)
            self._save()
            return True, metrics

    def close(self) -> None:
        """Save the state, with the position of the next problem, and give the file free."""
        with self._lock:
            try:
                self._save()
            finally:
                self._resources.close()

    def _save(self) -> None:
        if self._path is not None:
            state = {"environment": self._environment.state_dict(), "report_ids": list(self._report_ids)}
            write_atomically(self._path, json.dumps(state))

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            environment, report_ids = state["environment"], OrderedDict.fromkeys(map(str, state["report_ids"]))
        except (ValueError, LookupError, TypeError, RecursionError, OSError) as error:
            raise ConfigError(
                f"the state file {str(path)!r} is damaged ({error!r:.200}); restore it, or give another --state"
            ) from error
        self._environment.load_state_dict(environment)
        self._report_ids = report_ids

    def _lock_file(self, path: Path) -> None:
        try:
            # The state file itself is replaced at each write, so its lock would be lost.
            file = self._resources.enter_context(path.with_name(f"{path.name}.lock").open("w"))
        except OSError as error:
            raise ConfigError(
                f"the state file {str(path)!r} cannot be written ({error}); give another --state"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._resources.close()
            raise ConfigError(
                f"another service uses the state file {str(path)!r}; stop it, or give another --state"
            ) from error
