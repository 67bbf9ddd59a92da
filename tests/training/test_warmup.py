# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The supervised start: it learns, it is fitted once, and its settings are checked."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file

from sol_hf import SOLForCausalLM
from sol_hf.stored.folder_lock import FolderInUseError, folder_lock
from sol_hf.training import warmup as module
from sol_hf.training import warmup_progress, warmup_targets
from sol_hf.training.warmup import CounterfactualWarmup, warmup_blocks
from sol_hf.training.warmup_config import CounterfactualWarmupConfig
from support.bases import tiny_base
from support.cases import control, sol_model
from support.paths import PYTHON_PATH, SUPPORT


def settings_in(folder):
    return CounterfactualWarmupConfig(
        warmup_dir=str(folder / "measured"),
        warmup_blocks=4,
        warmup_context_length=12,
        warmup_steps_per_block=12,
        warmup_token_keep=[0.2],
        warmup_mlp_keep=[],
        warmup_bits=[3],
        warmup_updates=30,
        warmup_episodes=16,
        warmup_cost_models=2,
        warmup_learning_rate=3e-3,
        warmup_practice_rounds=1,
        warmup_practice_episodes=8,
        warmup_save_every=15,
    )


@pytest.fixture
def config(tmp_path):
    return settings_in(tmp_path)


def tiny(config):
    model = control(tiny_base("llama", torch.float32), observe_page_fill=True)
    levels = model.action_space.levels
    config.warmup_token_keep = [min(levels["token_keep"])]
    config.warmup_mlp_keep = [min(levels["mlp_keep"])]
    config.warmup_bits = [min(levels["bits"])]
    return CounterfactualWarmup(model, config)


def test_it_learns_and_a_second_run_loads_what_was_fitted(config, monkeypatch):
    starter = tiny(config)
    blocks = torch.randint(3, 99, (4, starter.block_length), generator=torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in starter.model.policy.state_dict().items()}
    losses = []
    real = CounterfactualWarmup.fit
    monkeypatch.setattr(CounterfactualWarmup, "fit", lambda self, *given: losses.extend(real(self, *given)))
    starter.run(blocks)
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    fitted = starter.model.policy.state_dict()
    assert any(not torch.equal(before[name], fitted[name]) for name in before)
    kept = [
        SOLForCausalLM.from_pretrained(path, base=starter.model.base)
        for path in sorted(starter.folder.glob("update-*"))
    ]
    states = [copy.policy.state_dict() for copy in kept]
    assert [path.name for path in sorted(starter.folder.glob("update-*"))] == ["update-00015", "update-00030"]
    assert all(torch.equal(states[1][name], fitted[name]) for name in fitted)
    assert any(not torch.equal(states[0][name], fitted[name]) for name in fitted)
    again = tiny(config)
    again.run(blocks)
    assert len(losses) == 30
    assert all(torch.equal(again.model.policy.state_dict()[name], fitted[name]) for name in fitted)


def blocks_for(starter, number: int = 4):
    return torch.randint(3, 99, (number, starter.block_length), generator=torch.Generator().manual_seed(2))


def weights_of(starter):
    return {name: tensor.clone() for name, tensor in starter.model.policy.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def shortened(config):
    return replace(config, warmup_updates=12, warmup_save_every=0)


@pytest.fixture
def short(config):
    return shortened(config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The policy of a fit that was not stopped."""
    torch.manual_seed(0)
    starter = tiny(shortened(settings_in(tmp_path_factory.mktemp("whole"))))
    starter.run(blocks_for(starter))
    return weights_of(starter)


class TestStopped:
    """A fit that was stopped continues, and ends with the same policy."""

    @pytest.mark.parametrize("stop", [1, 6, 11])
    def test_in_an_update(self, short, whole, monkeypatch, stop):
        monkeypatch.setattr(warmup_progress, "EVERY", 0.0)
        real, done = CounterfactualWarmup._update, []

        def update(self, number, *given):
            if number == stop and len(done) == stop:
                raise KeyboardInterrupt
            done.append(number)
            return real(self, number, *given)

        monkeypatch.setattr(CounterfactualWarmup, "_update", update)
        starter = tiny(short)
        with pytest.raises(KeyboardInterrupt):
            starter.run(blocks_for(starter))
        assert (starter.folder / "fit" / "state.safetensors").exists()
        done.append(None)
        again = tiny(short)
        again.run(blocks_for(again))
        assert done == [*range(stop), None, *range(stop, 12)]
        assert same(weights_of(again), whole) and not (starter.folder / "fit").exists()

    def test_between_two_cost_models(self, short, whole, monkeypatch):
        real, seeds = warmup_targets.fit_cost_model, []

        def fit(*given, seed, **options):
            seeds.append(seed)
            if seeds == [0, 1]:
                raise KeyboardInterrupt
            return real(*given, seed=seed, **options)

        monkeypatch.setattr(warmup_targets, "fit_cost_model", fit)
        with pytest.raises(KeyboardInterrupt):
            tiny(short).run(blocks_for(tiny(short)))
        again = tiny(short)
        again.run(blocks_for(again))
        assert seeds == [0, 1, 1] and same(weights_of(again), whole)

    @pytest.mark.parametrize("name", ["policy.safetensors", "measured-00000.safetensors"])
    @pytest.mark.slow
    def test_a_damaged_file_is_made_again(self, short, whole, name, caplog):
        starter = tiny(short)
        starter.run(blocks_for(starter))
        path = starter.folder / name
        path.write_bytes(path.read_bytes()[:-9])
        if name != "policy.safetensors":
            (starter.folder / "policy.safetensors").unlink()
        again = tiny(short)
        again.run(blocks_for(again))
        assert same(weights_of(again), whole) and f"{path} is damaged" in caplog.text

    def test_a_damaged_state_begins_the_fit_again(self, short, whole, caplog):
        starter = tiny(short)
        state = starter.folder / "fit" / "state.safetensors"
        state.parent.mkdir(parents=True)
        state.write_text("nonsense")
        starter.run(blocks_for(starter))
        assert same(weights_of(starter), whole) and f"{state} is damaged" in caplog.text

    @pytest.mark.parametrize("content", ["", "{", "null"])
    def test_damaged_settings_name_the_file(self, short, content):
        starter = tiny(short)
        starter.folder.mkdir()
        (starter.folder / "settings.json").write_text(content)
        with pytest.raises(
            ValueError, match=rf"{starter.folder / 'settings.json'} is damaged .*: delete {starter.folder}"
        ):
            starter.run(blocks_for(starter))


class TestSettings:
    def test_whatever_the_fit_depends_on_is_a_setting(self, short, monkeypatch):
        starter = tiny(short)
        blocks = blocks_for(starter)
        starter.run(blocks)
        assert starter.is_fitted(blocks) and tiny(short).is_fitted(blocks)
        other = tiny(short)
        other.model.policy.final_norm.weight.data[0] += 1
        another_episode = CounterfactualWarmup(
            control(tiny_base("llama", torch.float32), observe_page_fill=True, episode_length=5), short
        )
        another_start = CounterfactualWarmup(other.model, short)
        assert not another_start.is_fitted(blocks) and not another_episode.is_fitted(blocks)
        assert not tiny(replace(short, warmup_updates=13)).is_fitted(blocks)
        assert not tiny(short).is_fitted(blocks.flip(0))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda model, blocks: model.base.lm_head.weight.data[-1, -1].add_(1), "base"),
            (lambda model, blocks: blocks[:, 0].fill_(1), "first_token"),
            (lambda model, blocks: setattr(model.config, "sink_tokens", 1), "selection"),
        ],
    )
    def test_measurements_of_something_else_are_refused(self, short, change, named):
        starter = tiny(short)
        starter.run(blocks_for(starter))
        other = tiny(short)
        blocks = blocks_for(other)
        change(other.model, blocks)
        with pytest.raises(ValueError, match=f"holds measurements with another {named}"):
            other.run(blocks)

    def test_a_folder_in_use_is_refused(self, short):
        starter = tiny(short)
        with folder_lock(starter.folder), pytest.raises(FolderInUseError, match="Another run is at work in"):
            starter.run(blocks_for(starter))

    def test_blocks_of_another_length_are_refused(self, short):
        starter = tiny(short)
        with pytest.raises(ValueError, match=f"Blocks have {starter.block_length} tokens each"):
            starter.run(blocks_for(starter)[:, 1:])


class TestCost:
    """What the fit costs grows with the blocks, up to what the shipped recipe takes."""

    def test_updates_and_episodes(self):
        config = CounterfactualWarmupConfig()
        assert [config.updates_for(n, 16) for n in (8, 80, 160, 400, 1200)] == [100, 100, 200, 500, 1500]
        assert [config.practice_episodes_for(n) for n in (8, 100, 1200)] == [32, 400, 512]
        given = CounterfactualWarmupConfig(warmup_updates=7, warmup_practice_episodes=9)
        assert given.updates_for(1200, 16) == 7 and given.practice_episodes_for(1200) == 9

    def test_steps_of_the_cost_models(self):
        rows = [2 * blocks * 128 * 3 // 4 for blocks in (8, 24, 80, 1200)]
        assert [warmup_targets._cost_model_steps(n) for n in rows] == [(n, 1024) for n in (30, 90, 300, 600)]
        assert warmup_targets._cost_model_steps(48) == (20, 48)

    def test_progress_is_shown_from_the_first_second(self, short, capfd):
        starter = tiny(short)
        starter.run(blocks_for(starter))
        shown = capfd.readouterr()
        assert all(f"{name}: 100%" in shown.err for name in ("Measuring", "Cost models", "Fitting"))
        assert "loss=" in shown.err and "On-policy episodes spent" in shown.out


class TestPlace:
    def test_base_and_policy_move_to_the_device_of_the_process(self, short, monkeypatch):
        starter, moved = tiny(short), []
        monkeypatch.setattr(starter.model.base, "to", lambda device: moved.append(device))
        starter._place(torch.device("meta"))
        assert moved == [torch.device("meta")]
        starter.model.base.hf_device_map = {"": "cpu"}
        starter._place(torch.device("meta"))
        assert len(moved) == 1  # a base that was distributed stays where it is
        starter._place(torch.device("cpu"))
        assert len(moved) == 1

    def test_nothing_as_large_as_the_states_is_kept_in_float32(self, short, monkeypatch):
        kept = []
        real = warmup_targets.WarmupTargets.__init__

        def init(self, *given):
            real(self, *given)
            kept.append(self)

        monkeypatch.setattr(warmup_targets.WarmupTargets, "__init__", init)
        starter = tiny(short)
        starter.run(blocks_for(starter))
        (targets,) = kept
        steps = targets.measured
        found = [x for x in [*vars(targets).values(), *vars(steps).values()] if isinstance(x, torch.Tensor)]
        large = [x for x in found if x.numel() >= steps.states.numel()]
        assert len(large) == 2 and all(x.dtype == torch.bfloat16 for x in large)

    def test_only_the_main_process_loads_measurements(self, short, monkeypatch):
        starter = tiny(short)
        blocks = blocks_for(starter)
        starter.run(blocks)
        loaded = []
        monkeypatch.setattr(module.Measurements, "load", lambda *given: loaded.append(given))
        starter.run(blocks)  # also not if the policy is there already
        assert loaded == []


@pytest.mark.parametrize("streamed", [False, True])
def test_blocks_are_drawn_from_datasets_and_streams(config, streamed):
    rows = Dataset.from_dict({"input_ids": [[number, number] for number in range(40)]})
    packed = IterableDataset.from_generator(lambda: iter(rows)) if streamed else rows
    drawn = [warmup_blocks(packed, config, seed=seed)[:, 0].tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 4
    few = IterableDataset.from_generator(lambda: iter(rows.select(range(3)))) if streamed else rows.select(range(3))
    with pytest.raises(ValueError, match="texts make 3 blocks only: give more text, or `warmup_blocks` 3"):
        warmup_blocks(few, config)


def test_a_base_that_predicts_no_numbers_is_an_error(short):
    starter = tiny(short)
    starter.model.base.lm_head.weight.data[3] = torch.inf
    with pytest.raises(ValueError, match="predicts infinite or undefined numbers in torch.float32"):
        starter.run(blocks_for(starter))
    assert not list(starter.folder.glob("measured-*"))


def test_without_updates_only_prices_are_found(short):
    starter = tiny(replace(short, warmup_updates=0))
    before = {name: x.clone() for name, x in starter.model.policy.state_dict().items()}
    starter.run(blocks_for(starter))
    assert all(torch.equal(before[name], x) for name, x in starter.model.policy.state_dict().items())
    assert set(starter.prices) == set(starter.model.action_space.axis_names)
    assert all(price >= 0 for pairs in starter.prices.values() for _, price in pairs)
    again = tiny(replace(short, warmup_updates=0))
    assert again.is_fitted(blocks_for(again)) and not tiny(short).is_fitted(blocks_for(again))


def test_a_fit_that_diverges_is_an_error(short, monkeypatch):
    starter = tiny(short)
    monkeypatch.setattr(module.WarmupTargets, "loss", lambda self, policy: torch.tensor(torch.nan))
    with pytest.raises(ValueError, match="loss of update 1 is nan: lower `warmup_learning_rate`"):
        starter.run(blocks_for(starter))


def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match="warmup_updates"):
        CounterfactualWarmupConfig(warmup_updates=-1)
    with pytest.raises(ValueError, match="repayment_spread"):
        CounterfactualWarmupConfig(warmup_repayment_spread=-1)
    with pytest.raises(ValueError, match="`warmup_budget_mode` must be one of hard, soft, got 'firm'"):
        CounterfactualWarmupConfig(warmup_budget_mode="firm")
    with pytest.raises(ValueError, match="`warmup_budget_horizon` must be one of generation, episode"):
        CounterfactualWarmupConfig(warmup_budget_horizon="forever")
    with pytest.raises(ValueError, match="warmup_dir"):
        CounterfactualWarmup(sol_model("llama", torch.float32), CounterfactualWarmupConfig())
    with pytest.raises(ValueError, match="make 2 blocks only"):
        warmup_blocks(Dataset.from_dict({"input_ids": [[1], [2]]}), config)


@pytest.mark.slow
def test_two_processes_end_with_the_policy_of_one(tmp_path):
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "CI": "1", "OMP_NUM_THREADS": "1"}
        script = str(SUPPORT / "warm_up_tiny.py")
        subprocess.run([*launch, script, str(folder)], check=True, env=environment, timeout=240)
        found += [load_file(folder / f"{rank}.safetensors") for rank in range(number)]
        assert len(list((folder / "measured").glob("measured-*"))) == 3
    assert all(same(found[0], other) for other in found[1:])
