"""What is deleted leaves no computed state behind: the removal of snapshot files, whether a runner is loaded or not.

A loaded runner must be told too (`services.wire.Forget`): it may hold the same state in memory, about to be written.
"""

from __future__ import annotations

from pathlib import Path

from services import kv_names
from services.store import disk


def forget_files(kv_folder: Path, owner: str, session: str) -> int:
    """Remove a session's snapshots of all models under `DATA_DIR/kv`; how many. ParleyError when the disk refuses."""
    with disk.told(kv_folder):
        return kv_names.remove(kv_folder, kv_names.stem(owner, session))
