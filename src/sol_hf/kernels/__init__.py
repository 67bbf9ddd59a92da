# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fast paths that need more than torch calls; each has plain torch code that it stands for and is tested against."""
