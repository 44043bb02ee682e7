from __future__ import annotations

import time

from diffmining_core.store.clock import storage_time
from diffmining_core.store.roots import Root


def test_the_storage_tells_its_time_and_keeps_nothing(root: Root) -> None:
    root.write_new("a", b"1")
    for folder in ("", "folder"):
        before = time.time()
        assert before - 2 < storage_time(root, folder) < time.time() + 2
    assert "a" in root.names()
    assert not [name for name in root.names() if name.startswith(".")]
    assert root.names("folder") == []
