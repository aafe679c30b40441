"""A hub on this machine, in place of the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rgtrain.models.model_lookup import ask_hub


@contextmanager
def local_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, models: dict[str, dict[str, bytes] | str]
) -> Iterator[list]:
    """Serve models to huggingface_hub, with an empty cache.

    Args:
        monkeypatch: The fixture of the test.
        cache: The folder of the hub's cache.
        models: The files of each model by name, or "gated" for a model without access. Others do not exist.

    Yields:
        The paths that were asked for.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/resolve/" not in self.path:
                return self._answer(404, {})
            asked.append(self.path)
            _, org, name, _, _, file = self.path.split("/", 5)
            model = models.get(f"{org}/{name}")
            if isinstance(model, dict) and file in model:
                # The cache stores files of equal tags once.
                tag = hashlib.sha1(model[file], usedforsecurity=False).hexdigest()
                self._answer(200, {"ETag": f'"{tag}"', "X-Repo-Commit": "0" * 40}, model[file])
            elif isinstance(model, dict):
                self._answer(404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(401, {"X-Error-Code": "GatedRepo" if model == "gated" else "RepoNotFound"})

        do_HEAD = do_GET

        def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    go_online(monkeypatch, cache, f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def go_online(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str) -> None:
    """Let huggingface_hub use the hub at `endpoint` and an empty cache."""
    from huggingface_hub import constants

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache)}.items():
        monkeypatch.setattr(constants, name, value)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    ask_hub.cache_clear()
