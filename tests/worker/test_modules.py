"""What a worker knows of the local modules that it has imported."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import py_compile
import secrets
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from pathlib import Path

import pytest

import nbqueue
from nbqueue.worker import modules
from nbqueue.worker.modules import LocalModules, is_local


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> LocalModules:
    for method in ("path_stats", "get_data", "set_data"):
        monkeypatch.setattr(SourceFileLoader, method, getattr(SourceFileLoader, method))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    watch = LocalModules()
    watch.watch()
    return watch


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"watched_{secrets.token_hex(4)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture
def write(tmp_path: Path, name: str) -> Callable[..., Path]:
    """``write(source, age_s=0)``: the module `name`, as if its file had been written so long ago."""

    def write(source: str, age_s: float = 0.0) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        then = time.time() - age_s
        os.utime(path, (then, then))
        return path

    return write


Write = Callable[..., Path]


def test_a_module_that_is_edited_has_changed_until_it_is_loaded_again(
    watch: LocalModules, name: str, write: Write
) -> None:
    write("value = 1\n")
    module = importlib.import_module(name)
    assert watch.changed() == ""
    write("value = 22\n")
    assert watch.changed() == watch.changed() == name
    assert importlib.reload(module).value == 22
    assert watch.changed() == ""


def test_what_was_imported_before_is_not_looked_at(name: str, write: Write, request: pytest.FixtureRequest) -> None:
    write("value = 1\n")
    importlib.import_module(name)
    watch = request.getfixturevalue("watch")
    write("value = 22\n")
    assert watch.changed() == ""


def test_an_edit_while_the_module_is_executed_is_seen(
    watch: LocalModules, name: str, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.py"
    write(f"import pathlib\npathlib.Path({str(path)!r}).write_text('value = 2')\nvalue = 1\n")
    assert importlib.import_module(name).value == 1
    assert watch.changed() == name


def test_an_edit_between_the_import_and_the_next_look_is_seen(watch: LocalModules, name: str, write: Write) -> None:
    """As in a call that imports the module first and then runs for an hour."""
    write("value = 1\n")
    assert importlib.import_module(name).value == 1
    write("value = 22\n")
    assert watch.changed() == name


def test_same_size_and_same_times_do_not_hide_an_edit_of_a_young_file(
    watch: LocalModules, name: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_stamp", lambda st: (1, 1, st.st_size, 1))
    write("value = 1\n")
    importlib.import_module(name)
    assert watch.changed() == ""
    write("value = 2\n")
    assert watch.changed() == name


def test_a_file_that_was_touched_or_written_anew_with_the_same_content_has_not_changed(
    watch: LocalModules, name: str, write: Write
) -> None:
    path = write("value = 1\n", age_s=100)
    importlib.import_module(name)
    write("value = 1\n", age_s=50)
    assert watch.changed() == ""
    other = path.with_suffix(".new")
    other.write_text("value = 1\n")
    other.replace(path)
    assert watch.changed() == ""
    write("value = 1\n", age_s=-1000)
    assert watch.changed() == ""
    write("value = 2\n", age_s=-1000)
    assert watch.changed() == name


def test_a_file_that_is_gone_has_changed_only_when_another_takes_its_place(
    watch: LocalModules, name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "GONE_NS", 0)
    path = write("value = 1\n")
    importlib.import_module(name)
    path.unlink()
    assert watch.changed() == ""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("value = 1\n")
    assert watch.changed() == name


def test_submodules_and_namespace_packages(watch: LocalModules, name: str, tmp_path: Path) -> None:
    inner = tmp_path / name / "part" / "inner.py"
    inner.parent.mkdir(parents=True)
    inner.write_text("value = 1\n")
    importlib.import_module(f"{name}.part.inner")
    assert sys.modules[name].__spec__ is not None
    assert sys.modules[name].__file__ is None
    assert watch.changed() == ""
    inner.write_text("value = 22\n")
    assert watch.changed() == f"{name}.part.inner"


def test_an_import_that_failed_is_forgotten(watch: LocalModules, name: str, write: Write) -> None:
    write("value = = 1\n")
    with pytest.raises(SyntaxError):
        importlib.import_module(name)
    write("value = 1\n")
    assert watch.changed() == ""
    assert importlib.import_module(name).value == 1


def test_files_that_are_loaded_under_no_name_are_forgotten(watch: LocalModules, tmp_path: Path) -> None:
    for i in range(5):
        path = tmp_path / f"plug_in_{i}.py"
        path.write_text("value = 1\n")
        spec = importlib.util.spec_from_file_location(f"plug_in_{i}", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        path.unlink()
        assert watch.changed() == ""
    assert not watch._files


def test_a_module_that_a_finder_of_its_own_finds_is_watched(
    watch: LocalModules, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of packages that were installed for editing."""
    source = tmp_path / "elsewhere" / "__init__.py"
    source.parent.mkdir()
    source.write_text("value = 1\n")

    class Finder:
        @staticmethod
        def find_spec(wanted: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return importlib.util.spec_from_file_location(wanted, source) if wanted == name else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert importlib.import_module(name).value == 1
    (source.parent / "part.py").write_text("value = 1\n")
    importlib.import_module(f"{name}.part")
    assert watch.changed() == ""
    source.write_text("value = 22\n")
    assert watch.changed() == name
    source.write_text("value = 1\n")
    (source.parent / "part.py").write_text("value = 22\n")
    assert watch.changed() == f"{name}.part"


def test_a_module_in_an_archive_is_left_alone(
    watch: LocalModules, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{name}.py", "value = 1\n")
    monkeypatch.syspath_prepend(str(archive))
    assert importlib.import_module(name).value == 1
    archive.unlink()
    assert watch.changed() == ""


def test_a_module_without_source_is_watched_by_its_times(
    watch: LocalModules, name: str, write: Write, tmp_path: Path
) -> None:
    source = write("value = 1\n")
    compiled = tmp_path / f"{name}.pyc"
    py_compile.compile(str(source), str(compiled))
    source.unlink()
    assert importlib.import_module(name).value == 1
    assert watch.changed() == ""
    os.utime(compiled, (1, 1))
    assert watch.changed() == name


def test_odd_inhabitants_of_sys_modules_do_no_harm(
    watch: LocalModules, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = type("Odd", (), {"__getattr__": lambda self, key: 1 / 0})()
    for i, value in enumerate((None, 5, odd)):
        monkeypatch.setitem(sys.modules, f"{name}_{i}", value)
        assert watch.changed() == ""


def test_a_module_written_after_it_was_not_found_is_found(watch: LocalModules, name: str, write: Write) -> None:
    directory = write("value = 1\n").parent
    times = os.stat(directory)
    (directory / f"{name}.py").unlink()
    os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    write("value = 1\n")
    # The directory looks as it did when its contents were listed.
    os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    assert watch.changed() == ""
    assert importlib.import_module(name).value == 1


def test_an_import_path_fits_unless_it_finds_another_module_of_that_name(
    watch: LocalModules, name: str, write: Write, tmp_path: Path
) -> None:
    write("value = 1\n")
    importlib.import_module(name)
    other, empty, link = tmp_path / "other", tmp_path / "empty", tmp_path / "link"
    for folder in (other, empty):
        folder.mkdir()
    (other / f"{name}.py").write_text("value = 2\n")
    link.symlink_to(tmp_path)
    assert watch.fits((str(tmp_path), str(other)))
    assert watch.fits((str(link),))
    assert watch.fits((str(empty), "/no/such/place", "rélative"))
    assert not watch.fits((str(empty), str(other), str(tmp_path)))
    assert watch.fits((str(tmp_path),))


# Bytecode


def _forget(name: str) -> None:
    del sys.modules[name]
    importlib.invalidate_caches()


def test_bytecode_of_an_edit_in_the_same_second_is_not_taken(watch: LocalModules, name: str, write: Write) -> None:
    now = int(time.time())
    path = write("value = 1\n")
    os.utime(path, (now, now))
    py_compile.compile(str(path))
    path.write_text("value = 2\n")
    os.utime(path, (now, now))
    assert importlib.import_module(name).value == 2


def test_no_bytecode_is_written_for_a_young_file(watch: LocalModules, name: str, write: Write) -> None:
    write("value = 1\n")
    cached = importlib.import_module(name).__cached__
    assert not Path(cached).exists()


@pytest.fixture
def old_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inode's own times cannot be set back: look at the file's alone."""
    monkeypatch.setattr(modules, "_stamp", lambda st: (st.st_mtime_ns, st.st_mtime_ns, st.st_size, st.st_ino))
    read = modules._read

    def read_old(path: str) -> modules._File:
        file = read(path)
        file.settled = time.time_ns() - file.stamp[0] > modules.GRAIN_NS
        return file

    monkeypatch.setattr(modules, "_read", read_old)


@pytest.mark.usefixtures("old_times")
def test_bytecode_of_an_old_file_is_written_and_used(watch: LocalModules, name: str, write: Write) -> None:
    write("value = 1\n", age_s=100)
    cached = Path(importlib.import_module(name).__cached__)
    written = cached.stat().st_mtime_ns
    assert Path(cached).exists()
    _forget(name)
    importlib.import_module(name)
    assert cached.stat().st_mtime_ns == written
    assert watch._caches == {}


@pytest.mark.usefixtures("old_times")
def test_bytecode_that_is_older_than_its_source_is_made_anew(watch: LocalModules, name: str, write: Write) -> None:
    path = write("value = 1\n", age_s=100)
    cached = Path(py_compile.compile(str(path)) or "")
    os.utime(cached, (time.time() - 101, time.time() - 101))
    write("value = 2\n")
    os.utime(path, (path.stat().st_mtime, int(time.time() - 100)))
    assert importlib.import_module(name).value == 2
    _forget(name)
    assert importlib.import_module(name).value == 2
    assert cached.stat().st_mtime > time.time() - 50


# What is local


def test_what_is_installed_is_not_local(tmp_path: Path) -> None:
    assert not is_local(os.path.join(sysconfig.get_path("purelib"), "numpy", "__init__.py"))
    assert not is_local("/usr/lib/python3/dist-packages/apt/__init__.py")
    assert not is_local(json.__file__)
    assert not is_local(modules.__file__)
    assert not is_local(os.path.join(sysconfig.get_path("stdlib"), "lib-dynload", "x" + EXTENSION_SUFFIXES[0]))
    assert is_local(str(tmp_path / "helpers.py"))
    # Editable installs lie wherever they were checked out, an environment's own directory included.
    assert is_local(os.path.join(sys.prefix, "src", "mine", "__init__.py"))
    # A name that only begins like ours.
    assert is_local(nbqueue.__path__[0] + "_of_mine/__init__.py")
