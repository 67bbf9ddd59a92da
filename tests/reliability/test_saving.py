# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy that is saved over another: the folder holds the old one or the new one, whatever happens in between."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sol_hf import SOLForCausalLM
from sol_hf.hub import saving, staging
from support.bases import tiny_base
from support.cases import sol_model
from support.paths import ROOT
from support.sudden_death import kill


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model()


def set_weights(model: SOLForCausalLM, value: float) -> SOLForCausalLM:
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(value)
    return model


def weights_in(folder: Path) -> set[float]:
    policy = SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama")).policy
    return {parameter.flatten()[0].item() for parameter in policy.parameters()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(size: int):
    """No file of this process can become larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_full_disk_keeps_the_old_policy(model, tmp_path, size):
    set_weights(model, 0.25).save_pretrained(tmp_path)
    before = contents(tmp_path)
    set_weights(model, 0.5)
    with full_disk(size), pytest.raises(OSError, match="Nothing was saved in .*whose files are as before.*Free space"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == before and weights_in(tmp_path) == {0.25}
    model.save_pretrained(tmp_path)
    assert weights_in(tmp_path) == {0.5} and sorted(contents(tmp_path)) == sorted(before)


def test_an_interrupted_save_keeps_the_old_policy(model, tmp_path, monkeypatch):
    set_weights(model, 0.25).save_pretrained(tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "build_card", lambda *args, **kwargs: 1 / 0)
        (tmp_path / "README.md").rename(tmp_path / "kept.md")
        with pytest.raises(ZeroDivisionError):
            set_weights(model, 0.5).save_pretrained(tmp_path)
        (tmp_path / "kept.md").rename(tmp_path / "README.md")
    assert contents(tmp_path) == before


@contextmanager
def somebody_else():
    """A user who may write nowhere but in their own folders; only root can become one."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_read_only_folder_is_named(model, is_there):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "policy") if is_there else Path(name, "a", "policy")
        if is_there:
            set_weights(model, 0.25).save_pretrained(folder)
            folder.chmod(0o555)
        Path(name).chmod(0o555)
        try:
            with somebody_else(), pytest.raises(OSError, match=f"Nothing was saved in {folder}.*Permission denied"):
                set_weights(model, 0.5).save_pretrained(folder)
            assert not is_there or weights_in(folder) == {0.25}
        finally:
            for path in (Path(name), folder):
                if path.exists():
                    path.chmod(0o755)


def test_a_file_in_place_of_the_folder_is_named(model, tmp_path):
    (tmp_path / "policy").write_text("a file")
    with pytest.raises(OSError, match="Nothing was saved in .*policy"):
        model.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy").read_text() == "a file"


def test_a_card_that_is_there_is_kept_and_one_that_is_not_is_made(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    model.save_pretrained(tmp_path)
    assert "self-optimizing" in (tmp_path / "README.md").read_text()


def test_shards_of_an_earlier_save_are_not_loaded(model, tmp_path):
    set_weights(model, 0.25).save_pretrained(tmp_path, max_shard_size=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    set_weights(model, 0.5).save_pretrained(tmp_path)
    assert weights_in(tmp_path) == {0.5} and not list(tmp_path.glob("model-*"))
    set_weights(model, 0.75).save_pretrained(tmp_path, max_shard_size=4000)
    assert weights_in(tmp_path) == {0.75} and not (tmp_path / "model.safetensors").exists()


def test_what_a_killed_process_left_is_removed(model, tmp_path):
    remains = tmp_path / f"{staging.UNFINISHED}x"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    model.save_pretrained(tmp_path)
    assert not remains.exists() and not list(tmp_path.glob(".*"))


def test_two_threads_that_save_to_one_folder_save_one_after_the_other(tmp_path):
    models = [set_weights(sol_model(), value) for value in (0.25, 0.5)]
    for _ in range(5):
        threads = [threading.Thread(target=model.save_pretrained, args=(tmp_path,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert weights_in(tmp_path) in ({0.25}, {0.5})


WRITER = """
import sys
sys.path.insert(0, "tests")
from reliability.test_saving import set_weights
from support.cases import sol_model
model, folder, values = sol_model(), sys.argv[1], [float(value) for value in sys.argv[2:]]
print("ready", flush=True)
while True:
    for value in values:
        set_weights(model, value).save_pretrained(folder)
"""


def writer(folder: Path, *values: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), *map(str, values)]
    run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"ready\n"
    return run


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_policy(model, tmp_path):
    set_weights(model, 0.25).save_pretrained(tmp_path)
    for place in range(3):
        run = writer(tmp_path, 0.25, 0.5)
        threading.Event().wait(0.02 + 0.07 * place)
        kill(run)
        assert weights_in(tmp_path) in ({0.25}, {0.5})


@pytest.mark.slow
def test_two_processes_that_save_to_one_folder_leave_one_policy(tmp_path):
    runs = [writer(tmp_path, value) for value in (0.25, 0.5)]
    threading.Event().wait(3)
    for run in runs:
        assert run.poll() is None, "it failed"
        kill(run)
    assert weights_in(tmp_path) in ({0.25}, {0.5})
