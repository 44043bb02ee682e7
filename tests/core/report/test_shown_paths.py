from __future__ import annotations

import pytest

from diffmining_core.report.shown_paths import without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/mined/index.html is missing", "index.html is missing"),
        ("[Errno 2] No such file: '/home/ada/a.jpg'", "[Errno 2] No such file: 'a.jpg'"),
        ("'/home/ada/my photos/a b.jpg'", "'a b.jpg'"),
        ("image /home/bob jones/My Photos/a b.jpg: no", "image a b.jpg: no"),
        ('"/home/o\'brien/My Photos/a.jpg" is gone', '"a.jpg" is gone'),
        ("to /home/bob jones/ (3); see", "to another folder (3); see"),
        ('add --allow "/home/bob jones/"', 'add --allow "another folder"'),
        ("a / b, (1/2) of /home/bob, jones", "a / b, (1/2) of bob, jones"),
        ("/home/ada/a.jpg and https://a.example/b", "a.jpg and https://a.example/b"),
        ("file:///home/ada/a.jpg: cannot be read", "a.jpg: cannot be read"),
        ("PosixPath('/home/ada/.cache/x')", "PosixPath('x')"),
        ("(/a; root=/home/ada)", "(a; root=ada)"),
        ("https://a.example/b/c?d=/e", "https://a.example/b/c?d=e"),
        ("s3://bucket/mined/index.html, photos/a.jpg and/or ~/b", None),
    ],
)
def test_absolute_paths_become_names(text: str, shown: str | None) -> None:
    assert without_folders(text) == (text if shown is None else shown)


def test_known_folders_are_cut_whatever_their_names_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/o'brien; bob")
    text = "/home/o'brien; bob/out/a.jpg, /mnt/a' b/c/d.jpg, s3://home/o'brien; bob/a.jpg"
    shown = without_folders(text, ["/mnt/a' b"])
    assert shown == "a.jpg, d.jpg, s3://home/o'brien; bob/a.jpg"
