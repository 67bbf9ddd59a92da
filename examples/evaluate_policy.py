# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints what a policy is worth at several budgets: KL(dense ‖ policy) and perplexity, against others at equal cost.

    python examples/evaluate_policy.py policy texts.jsonl.gz --base smollm2-135m --budgets auto --blocks 32 \
        --context-length 256 512 --episodes 6 --contestants fixed:place,oracle --json evaluation.json

Texts are played as `generate` decodes: `--episodes` of decode steps with a KV refresh between them, budgets kept as by
default (`--hard` and `--soft` choose otherwise), contexts that end at every place of a page. The fixed schedule, and
every other contestant, is played at what the policy really spent. Intervals are over documents.

Without `--base` it uses the base that the policy's config names, without `--budgets` nine over the published grid,
clipped to the policy's action space; `--budgets auto` finds nine at which the fixed schedule costs .02 to .5 nats. The
texts are divided among the processes of an `accelerate launch`. Only the text for `--blocks` blocks is read.
`docs/training.md` explains the columns. The same as `sol-hf evaluate`.
"""

import sys

from sol_hf.cli.evaluate import main, names


__all__ = ["main", "names"]

if __name__ == "__main__":
    main(sys.argv[1:])
