"""Tells what lies in the store, whole, partial or left over, with what it takes and when it was last used, and deletes it.

store.py says where a file is, and fetches it.
"""

from __future__ import annotations

import fcntl
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storyfi_lite import files
from storyfi_lite.errors import BadInput
from storyfi_lite.models.registry import GGUFFile, ModelSpec, Registry
from storyfi_lite.models.store import MOVED_BY, PARTIAL, Store

State = Literal["whole", "partial", "yours", "left over"]


@dataclass(frozen=True)
class Item:
    """Holds one quantization that is here, or what no model of the registry owns in a directory of the store. `name`: the model's
    key, or the directory's name. `owned`: the files to delete with it; none of the user's own. Times are in seconds since 1970."""

    name: str
    quant: str | None
    state: State
    path: Path
    size_bytes: int
    used_at_s: float | None
    arrived_at_s: float
    owned: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        facts = {"model": self.name, "quant": self.quant, "state": self.state, "path": str(self.path)}
        return {**facts, "size_bytes": self.size_bytes, "used_at": self.used_at_s}


def inventory(store: Store, registry: Registry) -> list[Item]:
    """List what is here: models in the registry's order, then what is left over."""
    files_of = [(spec, file) for spec in registry.local for file in spec.files]
    items = [item for spec, file in files_of if (item := _item(store, spec, file))]
    known = {path for item in items for path in item.owned}
    for directory in sorted(store.root.iterdir()) if store.root.is_dir() else ():
        others = [path for path in directory.rglob("*") if path.is_file() and path not in known]
        if found := [path for path in others if path.suffix not in (".lock", ".used")]:
            where = found[0] if len(found) == 1 else directory
            size_bytes = sum(path.stat().st_size for path in found)
            newest_s = max(path.stat().st_mtime for path in found)
            items.append(Item(directory.name, None, "left over", where, size_bytes, None, newest_s, tuple(found)))
    return items


def _item(store: Store, spec: ModelSpec, file: GGUFFile) -> Item | None:
    path, whole = store.path(spec, file), store.is_complete(spec, file)
    used_at_s = store.used_at_s(path)
    if file.directory:
        if not whole:
            return None
        return Item(spec.key, file.quant, "yours", path, file.size_bytes, used_at_s, path.stat().st_mtime, ())
    here = [one for one in store.owned(spec, file) if one.is_file()]
    content = [one for one in here if one.suffix in (".gguf", ".part")]
    if not content:
        return None
    state: State = "whole" if whole else "partial"
    size_bytes, arrived_at_s = sum(one.stat().st_size for one in here), max(one.stat().st_mtime for one in content)
    return Item(spec.key, file.quant, state, path, size_bytes, used_at_s, arrived_at_s, tuple(here))


def delete(store: Store, items: list[Item]) -> None:
    """Delete the files of these items, and the directories in which only locks and notes of use are left then. Raises BadInput,
    before anything is gone, if one of them is being fetched, or ConfigError for a place that cannot be written."""
    owned = [path for item in items for path in item.owned]
    with ExitStack() as held, files.writing(store.root, MOVED_BY):
        for path in (path for path in owned if path.suffix == ".lock" and path.is_file()):
            try:
                fcntl.flock(held.enter_context(path.open()), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"another process is fetching {path.stem}; stop it first") from None
        for path in owned:
            path.unlink(missing_ok=True)
        for directory in {store.root / path.relative_to(store.root).parts[0] for path in owned}:
            left = [path for path in directory.rglob("*") if path.is_file()]
            if all(path.suffix in (".lock", ".used") for path in left):
                for path in left:
                    path.unlink(missing_ok=True)
                for empty in (directory / PARTIAL, directory):
                    with suppress(OSError):
                        empty.rmdir()
