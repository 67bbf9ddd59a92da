# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""transformers' server for a policy, which speaks OpenAI's protocol, with a budget per request.

Fields of requests, the queue, and batches only: what is generated is `SOLForCausalLM.generate`'s.
"""
