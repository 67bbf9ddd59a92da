# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Helpers of several tests: tiny bases, cases, a local server with the interface of the Hub."""
