# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode steps on the CPU as one program of compiled operations: recognition of bases, assembly, run."""
