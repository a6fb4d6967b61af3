"""Jobs that put models of galleries into the folder: one runs at a time, and every process can tell how each one is.

A job is a file, `DATA_DIR/model_jobs/<uuid>.json`, and a lock beside it that its process holds until it is done: a
record that is not done and whose lock is free was left by a process that died. `<uuid>.cancel` tells that process to
end it.
"""

from __future__ import annotations

import json
import logging
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec

from services.engine import yaml_files
from services.engine.addresses import Sources, shown
from services.engine.definitions import Apply
from services.engine.gallery import Galleries, Gallery, install, installed
from services.engine.machine import in_words
from services.errors import BadRequest, ConfigError, Conflict, NotFound, ParleyError, TooManyRequests
from services.settings import Settings
from services.store import disk

log = logging.getLogger("parley.engine")
KEPT = 100                  # records of jobs that are done
MOST = 20                   # jobs of this process that are not
EVERY = 0.5                 # seconds between two notes of how far a download is
TURN = 7 * 86400.0          # seconds that a job waits for others
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DIED = "the server was stopped or restarted before it was done: apply it again, it goes on from there"


@dataclass(frozen=True)
class Job:
    """How a job is, in LocalAI's words. `message`: queued, processing, cancelling, completed, or what is wrong."""

    uuid: str
    gallery_element_name: str
    message: str = "queued"
    processed: bool = False
    error: str | None = None
    progress: float = 0.0           # per cent
    file_name: str = ""
    file_size: str = ""
    downloaded_size: str = ""
    created: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0    # epoch seconds; 0.0: it was not noted yet then


class Jobs:
    """The jobs in `data_dir`. Any thread may ask."""

    def __init__(self, data_dir: Path, galleries: Galleries) -> None:
        self.folder = data_dir / "model_jobs"
        self.galleries = galleries
        self._open = 0                      # jobs of this process that are not done; under _lock
        self._lock = threading.Lock()

    def begin(self, wanted: Apply) -> Job:
        """A job for `wanted`, running in a thread from now on, or from when those before it are done.

        Raises `TooManyRequests`, and what storage raises.
        """
        with self._lock:
            if self._open >= MOST:
                raise TooManyRequests(f"{MOST} models are to be applied already: wait for some of them", retry_after=30)
            self._open += 1
        try:
            return self._begin(wanted)
        except BaseException:
            self._done()
            raise

    def _begin(self, wanted: Apply) -> Job:
        disk.make_dirs(self.folder, follow=False)
        self._forget_old()
        job = _made(wanted)
        held = ExitStack()
        held.enter_context(disk.locked(self._path(job.uuid)))
        self._write(job)
        threading.Thread(target=self._run, args=(job, wanted, held), name="model-job", daemon=True).start()
        return job

    def apply(self, wanted: Apply, unless_there: bool = False) -> Job:
        """The same, in this thread, until it is done. `unless_there`: what is there already stays as it is."""
        disk.make_dirs(self.folder, follow=False)
        self._forget_old()
        job = _made(wanted)
        with disk.locked(self._path(job.uuid)):
            return self._work(job, wanted, unless_there)

    def get(self, id: str) -> Job:
        """Raises `NotFound`."""
        job = self._look(id)
        if job is None:
            raise NotFound(f"there is no job {id[:80]!r}; POST /models/apply begins one", param="uuid")
        return job

    def all(self) -> list[Job]:
        """The last KEPT, the newest first. What else lies in the folder is passed over."""
        found = []
        for path in self._records()[:KEPT]:
            try:
                found.append(self._look(path.stem))
            except ParleyError as error:
                log.warning("a record of a model job is passed over: %s", error.message)
        return sorted(filter(None, found), key=lambda job: job.created, reverse=True)

    def cancel(self, id: str) -> Job:
        """Have a job that is not done end: at its next sign of progress, or when it has its turn. What came so far of a
        file is kept. Raises `NotFound`."""
        job = self.get(id)
        if job.processed:
            return job
        disk.write_atomic(self._stop(id), b"")
        return self.get(id)

    def _look(self, id: str) -> Job | None:
        job = self._read(id)
        if job is None or job.processed:
            return job
        if not self._abandoned(id):
            return replace(job, message="cancelling") if self._stop(id).exists() else job
        job = self._read(id) or job         # its last word may have come in between
        return job if job.processed else self._died(job)

    def _died(self, job: Job) -> Job:
        """Who only looks is told also where the record cannot be written."""
        job = replace(job, processed=True, message=f"error: {DIED}", error=DIED)
        try:
            return self._write(job)
        except ParleyError as error:
            log.warning("the end of model job %s cannot be noted: %s", job.uuid, error.message)
            return job

    # ------------------------------------------------------------ the work

    def _run(self, job: Job, wanted: Apply, held: ExitStack) -> None:
        with held:
            try:
                self._work(job, wanted, False)
            finally:
                self._done()

    def _done(self) -> None:
        with self._lock:
            self._open -= 1

    def _work(self, job: Job, wanted: Apply, unless_there: bool) -> Job:
        """Whatever happens, the record tells of it."""
        try:
            with disk.locked(self.folder / "turn", TURN):
                job = self._note(replace(job, message="processing"))
                name = self._install(job, wanted, unless_there)
        except ParleyError as error:
            log.warning("model job %s (%s): %s", job.uuid, job.gallery_element_name, error.message)
            return self._failed(job, error.message)
        except Exception:
            log.exception("model job %s (%s) failed", job.uuid, job.gallery_element_name)
            return self._failed(job, f"internal error; the server's log says more under {job.uuid}")
        log.info("model job %s: %s is installed", job.uuid, name)
        return self._write(replace(job, message="completed", processed=True, progress=100.0))

    def _failed(self, job: Job, reason: str) -> Job:
        return self._write(replace(job, message=f"error: {reason}", processed=True, error=reason))

    def _install(self, job: Job, wanted: Apply, unless_there: bool) -> str:
        definition = self.galleries.definition(wanted)
        sources = self.galleries.sources
        if not (unless_there and installed(definition, sources.models_dir)):
            install(definition, sources, Noter(job, self._note))
        return definition.name

    # ------------------------------------------------------------ the records

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def _stop(self, id: str) -> Path:
        return self.folder / f"{id}.cancel"

    def _note(self, job: Job) -> Job:
        """`_write`, unless the job was cancelled."""
        if self._stop(job.uuid).exists():
            raise Conflict("cancelled", code="cancelled")
        return self._write(job)

    def _write(self, job: Job) -> Job:
        disk.write_atomic(self._path(job.uuid), json.dumps(asdict(job)).encode())
        return job

    def _read(self, id: str) -> Job | None:
        if not _ID.fullmatch(id):
            return None
        try:
            job = msgspec.json.decode(disk.read_bytes(self._path(id)), type=Job)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return job if job.uuid == id else None

    def _abandoned(self, id: str) -> bool:
        try:
            with disk.locked(self._path(id), 0.0):
                return True
        except TimeoutError:
            return False

    def _forget_old(self) -> None:
        """Keep the last records that are done."""
        for path in self._records()[KEPT:]:
            job = self._read(path.stem)
            if job is None or job.processed or self._abandoned(path.stem):
                for old in (path, path.with_name(path.name + ".lock"), self._stop(path.stem)):
                    with suppress(FileNotFoundError):
                        old.unlink()

    def _records(self) -> list[Path]:
        """Those that changed last come first."""
        return [path for _, path in sorted(self._changed(), reverse=True)]

    def _changed(self) -> Iterator[tuple[float, Path]]:
        for path in self.folder.glob("*.json"):
            with suppress(FileNotFoundError):           # another process has just forgotten it
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield found.st_mtime, path


def _made(wanted: Apply) -> Job:
    return Job(str(uuid.uuid4()), wanted.id or wanted.name or shown(wanted.url), created=round(time.time(), 3))


class Noter:
    """Notes how far a download is, now and then; a `gallery.Progress`."""

    def __init__(self, job: Job, write: Callable[[Job], Job], now: Callable[[], float] = time.monotonic) -> None:
        self._job, self._write, self._now = job, write, now
        self._next = 0.0

    def __call__(self, place: int, count: int, file: str, done: int, total: int | None) -> None:
        if self._now() < self._next and done != total:
            return
        self._next = self._now() + EVERY
        part = done / total if total else 0.0
        self._write(replace(self._job, file_name=file, progress=round(100 * (place + part) / count, 2),
                            file_size=in_words(total) if total else "", downloaded_size=in_words(done)))


def jobs_of(settings: Settings, named: Sequence[Apply] = ()) -> Jobs:
    """The jobs and galleries that the settings mean. What is `named` in them too may come from wherever it says."""
    urls = [url for one in named for url in (one.url, *(file.uri for file in one.files))]
    sources = Sources(settings.models_dir, settings.hub_url, settings.hub_token,
                      tuple(url for url in urls if url.startswith(("http://", "https://"))))
    return Jobs(settings.data_dir, Galleries([Gallery(*one) for one in settings.galleries], sources))


def wanted_at_start(settings: Settings) -> list[Apply]:
    """PRELOAD_MODELS, then the file of PRELOAD_MODELS_CONFIG. `ConfigError` names what is wrong in them, and in
    GALLERIES."""
    try:
        jobs_of(settings)
    except BadRequest as error:
        raise ConfigError(f"GALLERIES: {error.message}") from None
    bodies = list(settings.preload_models)
    if settings.preload_file is not None:
        value = yaml_files.read(settings.preload_file).value
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise ConfigError(f"{yaml_files.shown(settings.preload_file)}: expected a list of what POST /models/apply "
                              "takes")
        bodies += value
    try:
        return [Apply.of(body) for body in bodies]
    except BadRequest as error:
        raise ConfigError(f"PRELOAD_MODELS or PRELOAD_MODELS_CONFIG: {error.message}") from None


def preload(jobs: Jobs, wanted: list[Apply]) -> threading.Thread:
    """Put into the folder, in the background and one after the other, what of `wanted` is not there yet."""
    def work() -> None:
        for one in wanted:
            jobs.apply(one, unless_there=True)
    thread = threading.Thread(target=work, name="preload", daemon=True)
    thread.start()
    return thread
