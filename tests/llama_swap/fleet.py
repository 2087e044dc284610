"""The models' processes: started when asked for, unloaded for others, after their ttl, or on request."""

import contextlib
import itertools
import subprocess
import threading
import time
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import IO, Literal

from .config import Config, ModelConfig

POLL = 0.05  # seconds between two looks at a model's health; the original's is 1
SWEEP = 0.1  # seconds between two looks at the ttl; the original's is 1


class CannotStart(Exception):
    """The model's command does not run, ended, or did not get healthy in time."""


class TooMany(Exception):
    """More requests to a model than its concurrencyLimit."""


@dataclass(eq=False)
class Model:
    """A model's process. All of it is guarded by the fleet's lock."""

    config: ModelConfig
    state: Literal["stopped", "starting", "ready", "stopping"] = "stopped"
    process: "subprocess.Popen[bytes] | None" = None
    running: int = 0
    present: int = 0  # running and waiting
    idle_since: float = 0.0


class Fleet:
    """request() lends a model that is ready; close() ends them all."""

    def __init__(self, config: Config, environ: Mapping[str, str], log: IO[bytes]) -> None:
        self.models = {name: Model(model) for name, model in config.models.items()}
        self._config = config
        self._environ = dict(environ)
        self._log = log
        self._changed = threading.Condition()
        self._queue: list[tuple[int, int, Model]] = []
        self._numbers = itertools.count()
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, daemon=True)
        self._sweeper.start()

    @contextlib.contextmanager
    def request(self, name: str) -> Generator[Model]:
        """Wait until the model is ready, which starts it and unloads its rivals. Raises TooMany and CannotStart.

        First come, first served among those that stand in each other's way; a model with running requests is never
        unloaded, and requests to others pass meanwhile.
        """
        model = self.models[name]
        with self._changed:
            if model.present >= model.config.concurrency_limit:
                raise TooMany(f"model {name} is at its concurrency limit of {model.config.concurrency_limit}")
            model.present += 1
            place = (-model.config.priority, next(self._numbers), model)
            self._queue.append(place)
            try:
                try:
                    while not self._ready(place):
                        pass
                finally:
                    self._queue.remove(place)
                    self._changed.notify_all()
                model.running += 1
            except BaseException:
                model.present -= 1
                raise
        try:
            yield model
        finally:
            with self._changed:
                model.running -= 1
                model.present -= 1
                model.idle_since = time.monotonic()
                self._changed.notify_all()

    def unload(self, name: str) -> None:
        """At once: a running request gets no answer."""
        with self._changed:
            self._stop(self.models[name])

    def close(self) -> None:
        """Let running requests finish, then end all processes."""
        self._closing.set()
        self._sweeper.join()
        with self._changed:
            self._changed.wait_for(lambda: not any(model.running for model in self.models.values()), 30)
            for model in self.models.values():
                self._stop(model)

    def _ready(self, place: tuple[int, int, Model]) -> bool:
        """One step towards it, with the lock held: True when the model may be used, else something was done or waited for."""
        model = place[2]
        rivals = [self.models[name] for name in self._config.rivals(model.config)]
        ahead = [other[2] for other in self._queue if other[:2] < place[:2]]
        if any(self._in_the_way(model, other) for other in ahead):
            self._changed.wait()
            return False
        for rival in rivals:
            if rival.state == "ready" and not rival.running:
                self._stop(rival)
                return False
        if any(rival.state != "stopped" for rival in rivals):
            self._changed.wait()
            return False
        if model.state == "ready" and model.process is not None and model.process.poll() is not None:
            self._reap(model)
        if model.state == "ready":
            return True
        if model.state == "stopped":
            self._start(model)
        else:
            self._changed.wait()
        return False

    def _in_the_way(self, one: Model, other: Model) -> bool:
        return other.config.id in self._config.rivals(one.config) or one.config.id in self._config.rivals(other.config)

    def _start(self, model: Model) -> None:
        """Start it and wait until it is healthy, without the lock. Raises CannotStart."""
        model.state = "starting"
        try:
            model.process = process = self._spawn(model.config)
            self._changed.release()
            try:
                self._until_healthy(model.config, process)
            finally:
                self._changed.acquire()
            if model.process is not process:  # unload() was faster
                raise CannotStart("upstream command exited prematurely")
        except CannotStart:
            self._stop(model)
            raise
        model.state = "ready"
        model.idle_since = time.monotonic()
        self._changed.notify_all()

    def _spawn(self, config: ModelConfig) -> "subprocess.Popen[bytes]":
        if self._closing.is_set():
            raise CannotStart("shutting down")
        try:
            return subprocess.Popen(
                config.argv,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(f"unspecific error: failed to start command: {error}") from None

    def _until_healthy(self, config: ModelConfig, process: "subprocess.Popen[bytes]") -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + self._config.health_check_timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CannotStart("upstream command exited prematurely")
            try:
                with direct.open(f"{config.proxy}/health", timeout=1):
                    return
            except OSError:
                time.sleep(POLL)
        raise CannotStart(f"health check timed out after {self._config.health_check_timeout:g}s")

    def _stop(self, model: Model) -> None:
        """SIGTERM, then SIGKILL after the unloadTimeout; waits without the lock."""
        if model.process is None:
            model.state = "stopped"
            self._changed.notify_all()
            return
        if model.state == "stopping":
            return
        model.state = "stopping"
        self._changed.release()
        try:
            model.process.terminate()
            try:
                model.process.wait(model.config.unload_timeout)
            except subprocess.TimeoutExpired:
                model.process.kill()
                model.process.wait()
        finally:
            self._changed.acquire()
        self._reap(model)

    def _reap(self, model: Model) -> None:
        model.process = None
        model.state = "stopped"
        self._changed.notify_all()

    def _sweep(self) -> None:
        while not self._closing.wait(SWEEP):
            with self._changed:
                for model in self.models.values():
                    idle = time.monotonic() - model.idle_since
                    if model.state == "ready" and not model.present and 0 < model.config.ttl < idle:
                        self._stop(model)
