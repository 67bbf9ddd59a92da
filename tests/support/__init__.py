# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What several tests share: tiny bases, cases, a server that stands for the Hub."""
