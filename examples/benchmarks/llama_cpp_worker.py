# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Decodes with llama.cpp, one token at a time, as it is asked to; run by compare_llama_cpp.py.

It runs in an environment of its own, which has the package `llama-cpp-python` and needs nothing of this repository.

    worker.py quantize SOURCE.gguf TARGET.gguf F32     converts weights, and ends
    worker.py serve MODEL.gguf IDS.json THREADS        processes the ids, answers requests on standard input

A request is a line `CONTEXT STEPS`: continue the first CONTEXT ids by the STEPS after them. The answer is a line of
JSON: seconds of all steps, processor time, and the most likely token after every step.
"""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np


TYPES = {"F32": 0, "BF16": 32, "Q8_0": 7}
"""Numbers of llama.cpp's file types."""


def quantize(source: str, target: str, kind: str) -> None:
    """Write the weights of a file in another type."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = TYPES[kind], True
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    if status:
        raise SystemExit(f"llama.cpp could not convert {source} to {kind}: status {status}")


def serve(path: str, ids: list[int], threads: int) -> None:
    """Process all ids but the last, then answer requests."""
    room = len(ids) + 8
    model = llama_cpp.Llama(path, n_ctx=room, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    model.eval(ids)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        context, steps = map(int, line.split())
        likely: list[int] = []
        if context > model.n_tokens:
            model.eval(ids[model.n_tokens : context])
        model.n_tokens = context  # what is cached after it is dropped by the next call
        begin, processor = time.perf_counter(), time.process_time()
        for token in ids[context : context + steps]:
            model.eval([token])
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            likely.append(int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax()))
        answer = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - processor, "likely": likely}
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Runs a command."""
    command, *given = sys.argv[1:]
    if command == "quantize":
        quantize(*given)
    else:
        path, ids, threads = given
        with open(ids, encoding="utf-8") as file:
            serve(path, json.load(file), int(threads))


if __name__ == "__main__":
    main()
