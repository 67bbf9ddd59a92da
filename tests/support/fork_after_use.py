# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Generates, forks, and generates again in the forked process; prints what happened there.

python tests/support/fork_after_use.py THREADS THREADS_OF_CHILD BUDGET
"""

import os
import signal
import sys

import torch

from sol_hf import FixedController
from support.repeat_texts import build


def main() -> None:
    """Exits with the code of the forked process, which is ended after a minute."""
    threads, child_threads, options = int(sys.argv[1]), int(sys.argv[2]), {}
    if sys.argv[3] == "budget":
        options = dict(token_keep=0.4, mlp_keep=0.5, controller=FixedController())
    torch.set_num_threads(threads)
    model, prompt = build(), torch.full((1, 60), 7)

    def generate() -> torch.Tensor:
        return model.generate(prompt, do_sample=False, max_new_tokens=4, **options)

    expected = generate()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(child_threads)
        try:
            said = "same text" if torch.equal(generate(), expected) else "another text"
        except RuntimeError as error:
            said = str(error)
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not torch.equal(generate(), expected):
        sys.stdout.write("the first process was disturbed\n")
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
