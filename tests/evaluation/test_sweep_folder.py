# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep that is stopped at any moment, started several times, or finds damaged files."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sol_hf.evaluation.sweep.calibration_file import save_calibration
from sol_hf.evaluation.sweep.folder import SweepFolder, describe
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import SweepError, read_table
from sol_hf.stored.folder_lock import folder_lock
from support.bases import tiny_base
from support.cases import SETTINGS, control
from support.paths import PYTHON_PATH


CONTEXT = 12
CONFIG = SweepConfig(controllers=("policy", "fixed"), budgets=((0.5, 0.5, 8),), context_length=CONTEXT)
BLOCKS = torch.randint(
    3, 99, (3, CONTEXT + SETTINGS["episode_length"] + 1), generator=torch.Generator().manual_seed(4)
)
PARTS = ("dense", "fixed-0-00000", "policy-0-00000")


def run(folder: Path, model=None):
    table = Sweep(control(tiny_base("llama")) if model is None else model, BLOCKS, CONFIG, folder).run()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


@pytest.fixture(scope="module")
def model():
    return control(tiny_base("llama"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, model)


@pytest.fixture
def expected(whole):
    return whole[1]


@pytest.fixture
def swept(whole, tmp_path):
    """A copy of the folder of a finished sweep."""
    shutil.copytree(whole[0], tmp_path / "swept")
    return tmp_path / "swept"


class TestStoppedAtAnyMoment:
    def test_before_a_file_operation(self, tmp_path, monkeypatch, expected, model):
        """Stop before the first, the second, ... operation that changes the folder, and continue each time."""
        for stop in [*range(7), *range(7, 99, 8)]:
            folder, left = tmp_path / str(stop), [stop]
            with monkeypatch.context() as patch:
                for name in ("mkdir", "replace", "write_text", "unlink"):
                    patch.setattr(Path, name, dies(getattr(Path, name), left))
                try:
                    assert run(folder, model) == expected
                    break
                except KeyboardInterrupt:
                    pass
            assert run(folder, model) == expected
        assert 15 < stop < 98

    @pytest.mark.parametrize(
        "left",
        [
            [],
            ["parts/"],
            ["_run.lock"],
            ["settings.json.77.partial"],
            ["_run.lock", "_run.json", "parts/", "settings.json.partial"],
        ],
    )
    def test_what_a_kill_in_the_first_milliseconds_leaves(self, tmp_path, expected, left, model):
        for name in left:
            (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("{")
        assert run(tmp_path, model) == expected

    def test_half_written_parts_and_tables(self, swept, expected, model):
        for path in [*(swept / "parts").iterdir(), swept / "sweep.parquet"]:
            path.rename(path.with_name(f"{path.name}.77.partial"))
        assert run(swept, model) == expected


def dies(real, left: list[int]):
    def operation(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    return operation


class TestSeveralAtOnce:
    def test_a_second_one_is_told(self, tmp_path, model):
        sweep = Sweep(model, BLOCKS, CONFIG, tmp_path)
        with folder_lock(tmp_path), pytest.raises(SweepError, match=f"Another run is at work in {tmp_path}: process "):
            sweep.run()
        assert len(sweep.run()) == 3

    def test_four_in_threads_write_one_sweep(self, tmp_path, expected):
        ended, barrier, models = [], threading.Barrier(4), [control(tiny_base("llama")) for _ in range(4)]

        def start(own):
            barrier.wait()
            try:
                ended.append(run(tmp_path, own))
            except SweepError as error:
                ended.append(str(error))

        threads = [threading.Thread(target=start, args=(own,)) for own in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert expected in ended and len(ended) == 4
        assert [end for end in ended if end != expected and "Another run is at work" not in end] == []
        assert run(tmp_path) == expected

    @pytest.mark.slow
    def test_four_processes(self, tmp_path, expected):
        command = [sys.executable, "-c", "import sys; from test_sweep_folder import *; run(Path(sys.argv[1]))"]
        environment = {**os.environ, "PYTHONPATH": PYTHON_PATH}
        options = dict(cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True, env=environment)
        running = [subprocess.Popen([*command, str(tmp_path)], **options) for _ in range(4)]
        errors = [process.communicate(timeout=200)[1] for process in running]
        failed = [error for process, error in zip(running, errors, strict=True) if process.returncode]
        assert len(failed) < 4 and all("Another run is at work" in error for error in failed)
        assert run(tmp_path) == expected


class TestDamage:
    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "other tensors"])
    def test_damaged_parts_are_made_again(self, swept, expected, damage, caplog, model):
        for part in PARTS:
            harm(swept / "parts" / f"{part}.safetensors", damage)
        assert run(swept, model) == expected
        assert all(f"{part}.safetensors is damaged" in caplog.text for part in PARTS)

    @pytest.mark.parametrize("content", ["", "{", "null", "[]", "3", '{"a": 1', "\x00" * 9])
    def test_damaged_settings_name_the_file_and_the_way_out(self, swept, content, model):
        (swept / "settings.json").write_text(content)
        message = rf"{swept / 'settings.json'} is damaged \(.*\): delete {swept} to begin again, or choose"
        with pytest.raises(SweepError, match=message):
            run(swept, model)

    def test_parts_without_settings(self, swept, model):
        (swept / "settings.json").unlink()
        with pytest.raises(SweepError, match="holds parts of a sweep, but settings.json is missing"):
            run(swept, model)

    @pytest.mark.parametrize("name", ["sweep", "blocks", "trials"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text"])
    def test_a_damaged_table_names_the_file_and_the_way_out(self, swept, name, damage):
        path = swept / f"{name}.parquet"
        harm(path, damage)
        with pytest.raises(SweepError, match=f"(?s){path} is damaged .* give the command of the sweep again"):
            read_table(swept, name)

    @pytest.mark.parametrize("content", ["", "{", "null", "[]"])
    def test_a_damaged_config_of_the_policy(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(
            ValueError, match=rf"{tmp_path / 'config.json'} is damaged \(.*\): download the policy again"
        ):
            save_calibration(tmp_path, {"controllers": {"policy": {"front": []}}})


def harm(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    middle = len(whole) * 3 // 4 if path.suffix == ".safetensors" else 60
    if damage == "other tensors":
        save_file({name: tensor[:1] for name, tensor in load_file(path).items() if tensor.dim()}, path)
        return
    path.write_bytes(
        {
            "cut": whole[:-20],
            "empty": b"",
            "flipped": whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :],
            "text": b"not found",
        }[damage]
    )


class TestSettings:
    def test_blocks_that_begin_with_bos_are_another_text(self, tmp_path):
        model, bos = control(tiny_base("llama")), BLOCKS.clone()
        bos[:, 0] = 1
        assert describe(model, BLOCKS)["first_token"] is None and describe(model, bos)["first_token"] == 1
        SweepFolder(tmp_path, describe(model, BLOCKS))
        with pytest.raises(SweepError, match="another first_token, text"):
            SweepFolder(tmp_path, describe(model, bos))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda m: m.base.lm_head.weight.data[-1, -1].add_(1), "another base:"),
            (lambda m: m.base.config.rope_parameters.update(rope_theta=77.0), "another base_config:"),
            (lambda m: setattr(m.config, "budget_mode", "x"), "another policy_config:"),
            (lambda m: m.policy.final_norm.weight.data[-1].add_(1), "another policy:"),
        ],
    )
    def test_whatever_changes_results_is_a_setting(self, tmp_path, change, named):
        model = control(tiny_base("llama"))
        SweepFolder(tmp_path, describe(model, BLOCKS))
        change(model)
        with pytest.raises(SweepError, match=named):
            SweepFolder(tmp_path, describe(model, BLOCKS))

    def test_where_the_files_came_from_is_none(self, tmp_path):
        model = control(tiny_base("llama"))
        SweepFolder(tmp_path, describe(model, BLOCKS))
        model.config.base_model_name_or_path = model.base.config._name_or_path = "elsewhere"
        SweepFolder(tmp_path, describe(model, BLOCKS))
        assert json.loads((tmp_path / "settings.json").read_text())["rules"] == 3
