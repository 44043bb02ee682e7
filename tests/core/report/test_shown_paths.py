from __future__ import annotations

import pytest

from diffmining_core.report.shown_paths import without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/mined/index.html is missing", "index.html is missing"),
        ("[Errno 2] No such file: '/home/ada/a.jpg'", "[Errno 2] No such file: 'a.jpg'"),
        ("'/home/ada/my photos/a.jpg'", "'my photos/a.jpg'"),
        ("file:///home/ada/a.jpg: cannot be read", "a.jpg: cannot be read"),
        ("PosixPath('/home/ada/.cache/x')", "PosixPath('x')"),
        ("(/a; root=/home/ada)", "(a; root=ada)"),
        ("https://a.example/b/c?d=/e", "https://a.example/b/c?d=e"),
        ("s3://bucket/mined/index.html, photos/a.jpg and/or ~/b", None),
    ],
)
def test_absolute_paths_become_names(text: str, shown: str | None) -> None:
    assert without_folders(text) == (text if shown is None else shown)
