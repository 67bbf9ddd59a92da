# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Settings of a short training run."""

from support.paths import DATA


TEXTS = str(DATA / "texts.jsonl.gz")


SETTINGS: dict = dict(
    token_keep=[0.5, 1.0],
    mlp_keep=[0.5, 1.0],
    bits=[8, 16],
    page_size=4,
    episode_length=4,
    policy_hidden_size=32,
    policy_num_heads=2,
    context_length=20,
    num_generations=4,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=8,
    gradient_accumulation_steps=2,
    rollout_batch_size=8,
    max_steps=4,
    save_steps=2,
    logging_steps=1,
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
    train_file=TEXTS,
)
