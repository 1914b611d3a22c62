"""Files appear whole or not at all, and errors name what the caller named."""

from __future__ import annotations

import os

import pytest

from irnext.files import atomic_file, output_folder


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / ("x" * 251 + ".png")  # as long as names may be
    target.write_bytes(b"old")
    with atomic_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("where", ["builtins.open", "os.fsync", "os.replace"])
def test_errors_name_the_target_and_nothing_is_left(tmp_path, monkeypatch, where):
    def fail(path, *_):
        raise PermissionError(13, "Permission denied", *([path] if where != "os.fsync" else []))

    target = tmp_path / "x.png"
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda path, *rest: fail(os.fspath(path) if where != "os.fsync" else path))
        with pytest.raises(PermissionError) as caught, atomic_file(target) as file:
            file.write(b"new")
    assert caught.value.filename == str(target) and not list(tmp_path.iterdir())


def test_errors_of_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "x.png"):
        open(tmp_path / "other").close()
    assert caught.value.filename == str(tmp_path / "other") and not list(tmp_path.iterdir())


def test_folders_that_stay_empty_are_removed_and_others_are_not(tmp_path):
    with output_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), output_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").touch()
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "result"]


@pytest.mark.parametrize("folder", ["file", "file/inner/most"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path, folder):
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotADirectoryError, match="a file, not a folder") as caught,
        output_folder(tmp_path / folder),
    ):
        pass
    assert caught.value.filename == str(tmp_path / "file")
