# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiles every Triton kernel for an H100, which needs no GPU, and prints what each of them uses.

A line of JSON per kernel: registers a thread, bytes spilled, bytes of shared memory, whether it uses tensor cores. Run
it without `TRITON_INTERPRET`, which would replace the kernels by their interpreted twins:

    python tests/support/compile_kernels.py
"""

import json
import re
import subprocess
import sys
import tempfile

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from sol_hf.kernels.cuda import attention as triton_attention
from sol_hf.kernels.cuda import chunk_attention as triton_chunk
from sol_hf.kernels.cuda import pages as triton_pages
from sol_hf.kernels.cuda import planes as triton_planes
from sol_hf.kernels.cuda import rms_norm as triton_norm
from sol_hf.kernels.cuda import score_tokens as triton_score
from sol_hf.kernels.cuda import select_pages as triton_select
from sol_hf.kernels.cuda import select_tokens as triton_tokens
from sol_hf.kernels.cuda import sketch_index as triton_sketch
from sol_hf.kernels.cuda import sparse_mlp as triton_mlp


H100 = GPUTarget("cuda", 90, 32)
MULTIPLES = ("slots", "query_row", "query_head", "capacity", "channels", "width", "key_row", "key_head")
"""Numbers that are multiples of 16 at the shapes of an 8B model, as the launcher would find out."""


def compile_kernel(name: str, kernel, arguments: list, warps: int = 4) -> dict:
    """What a kernel uses for arguments given as types, or as values of constants."""
    types, constants, hints = {}, {}, {}
    for place, (argument, given) in enumerate(zip(kernel.arg_names, arguments, strict=True)):
        is_type = isinstance(given, str) and (given[0] == "*" or given in ("i32", "fp32"))
        types[argument] = given if is_type else "constexpr"
        if not is_type:
            constants[argument] = given
        elif given[0] == "*" or argument in MULTIPLES:
            hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=H100, options={"num_warps": warps})
    report = assemble(compiled.asm["ptx"])
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", report))
    uses = {"registers": registers, "spilled": spilled, "shared": compiled.metadata.shared}
    return {"kernel": name, **uses, "tensor_cores": "mma" in compiled.asm["ptx"]}


def assemble(ptx: str) -> str:
    """What NVIDIA's assembler, which Triton brings along, says of a program."""
    assembler = get_ptxas(H100.arch).path
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [assembler, "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> None:
    """Compiles all kernels at the shapes of an 8B model."""
    half, single, integer, long = "*bf16", "*fp32", "*i32", "*i64"

    def attention(dtype: str, pack: int, wide: bool) -> list:
        pointers = [dtype] * 3 + [integer] * 2 + [long] * 2 + [single] * 3
        return [*pointers, "fp32", *["i32"] * 6, 128, 128, pack, 16, 16, wide, 16, 64, 128, 128]

    def chunk(dtype: str, wide: bool) -> list:
        pointers = [dtype] * 3 + [long] * 2 + [single] * 3
        blocks = (16 if wide else 64, 64)
        return [*pointers, "fp32", *["i32"] * 5, 128, 128, 4, 16, 32, wide, *blocks, 128, 128]

    def select(dtype: str, count: str, unit: int, absolute: bool, rounds: int) -> list:
        return [dtype, single, count, integer, integer, "i32", "i32", unit, absolute, rounds, 4096]

    def planes(dtype: str, exact: tl.dtype, tokens: int = 16) -> list:
        pointers = [dtype, single, *[integer] * 4, half, dtype, single]
        return [*pointers, *["i32"] * 8, 4, 16, exact, 64, 16, tokens, 64]

    def encode(width: int, rest: int, size: int, rest_size: int, top: int) -> list:
        layout = [top, width, rest, size, rest_size, 7, 16, 128 * width // 8, 128 * max(rest, 1) // 8]
        pointers = [half, long, long, single, "*u8", half]
        return [*pointers, *["i32"] * 4, "fp32", "fp32", 128, *layout, triton_sketch.ROUND_TO_INTEGER]

    def score(dtype: str, shared: bool, exact: tl.dtype) -> list:
        pointers = [dtype, "*u8", dtype, long, long, integer, *[single] * 3]
        return [*pointers, "fp32", *["i32"] * 8, 128, 4, shared, 7, 4, 0, 64, 0, exact, 16, 128, 64, 16]

    listed = [single, integer, long, integer]
    scored = [half] * 3 + [single] * 2 + [long] + ["i32"] * 5 + [128, 4, 16, False, 32, 128]
    kernels = [
        ("attend, head", triton_attention._attend_pages, attention(half, 1, False)),
        ("attend, group", triton_attention._attend_pages, attention(half, 4, False)),
        ("attend, float32", triton_attention._attend_pages, attention(single, 4, True)),
        ("merge parts", triton_attention._merge_parts, [single] * 3 + [half, 128, 4, 16, 128], 1),
        ("choose pages", triton_select._select_largest, select(single, long, 16, False, 16), 8),
        ("choose channels", triton_select._select_largest, select(half, integer, 1, True, 8), 8),
        ("attend, refresh", triton_chunk._attend_chunk, chunk(half, False)),
        ("attend, refresh, float32", triton_chunk._attend_chunk, chunk(single, True)),
        ("append", triton_pages._append_tokens,
         [half] * 6 + [long] * 2 + ["i32"] * 9 + [128, 128, 16, 16, True, 16, 128, 128]),
        ("norm", triton_norm._rms_norm, [half] * 3 + ["fp32", 4096, 4096], 8),
        ("score", triton_pages._score_pages, scored),
        ("multiply", triton_mlp._multiply_kept,
         [half, integer, integer, half, half, single, "i32", "i32", 9, True, 16, 128]),
        ("activate", triton_mlp._merge_and_activate,
         [single, None, None, half, "i32", 9, True, False, "silu", 128]),
        ("planes", triton_planes._multiply_planes, planes(half, tl.bfloat16)),
        ("planes, 32 tokens", triton_planes._multiply_planes, planes(half, tl.bfloat16, 32)),
        ("planes, float32", triton_planes._multiply_planes, planes(single, tl.float32)),
        ("encode, 4 bits", triton_sketch._encode_tokens, encode(4, 0, 64, 0, 7)),
        ("encode, 3 bits", triton_sketch._encode_tokens, encode(2, 1, 32, 16, 3)),
        ("score tokens, group", triton_score._score_tokens, score(half, True, tl.bfloat16)),
        ("score tokens, head", triton_score._score_tokens, score(half, False, tl.bfloat16)),
        ("score tokens, float32", triton_score._score_tokens, score(single, True, tl.float32)),
        ("add probabilities", triton_score._add_probabilities,
         [single] * 3 + [long, integer, single] + ["i32"] * 5 + [4, 128, 256]),
        ("count digits", triton_tokens._count_digits, [*listed, "i32", "i32", 8, 2, 2048]),
        ("list tokens", triton_tokens._list_tokens, [*listed, integer, integer, "i32", "i32", 8, 2048]),
        ("planes, add parts", triton_planes._add_parts, [single, half, half, "i32", "i32", 16, True, 1024]),
    ]  # fmt: skip
    for kernel in kernels:
        sys.stdout.write(json.dumps(compile_kernel(*kernel)) + "\n")


if __name__ == "__main__":
    main()
