# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The text of a model card, as a jinja template."""

CARD_TEMPLATE = """---
{{ card_data }}
---

# A self-optimizing policy for {{ base_name }}

This repository holds a small policy, not a language model. Before every decode step the policy reads the state of the
*frozen* base model and chooses how much of the KV cache to read (`token_keep`), how many MLP input channels to use
(`mlp_keep`) and at how many bits (`bits`), so that the averages stay within a budget given to `generate`.
{%- for axis in further %}
It also chooses the {{ axis.meaning }} (`{{ axis.name }}`).
{%- endfor %}
The weights of the base model are neither changed nor stored here.

## Use

```python
from transformers import AutoTokenizer
from sol_hf import SOLForCausalLM

{% if needs_base -%}
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/the/base")
tokenizer = AutoTokenizer.from_pretrained("path/to/the/base")
model = SOLForCausalLM.from_pretrained("{{ repo_id }}", base=base)
{%- else -%}
tokenizer = AutoTokenizer.from_pretrained("{{ base_name }}")
model = SOLForCausalLM.from_pretrained("{{ repo_id }}")
{%- endif %}
inputs = tokenizer("The sea is", return_tensors="pt")
output = model.generate(
    **inputs, max_new_tokens=64, token_keep=0.5, mlp_keep=0.7, bits=8{% for axis in further %}, {{ axis.name }}={{ axis.largest }}{% endfor %}, return_dict_in_generate=True
)
print(tokenizer.decode(output.sequences[0]), output.realised)
```

`AutoModel.from_pretrained` on this repository gives the policy alone, `AutoModelForCausalLM.from_pretrained` the base
under its control, `pipeline("text-generation", model=...)` too: after `import sol_hf`, or with `trust_remote_code=True`.

Without the package (`pip install sol_hf`), transformers runs the code in this repository, `sol_plain.py`, in plain
torch. A base that is loaded already takes the policy for one call:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

base_name = "{% if needs_base %}path/to/the/base{% else %}{{ base_name }}{% endif %}"
base, tokenizer = AutoModelForCausalLM.from_pretrained(base_name), AutoTokenizer.from_pretrained(base_name)
inputs = tokenizer("The sea is", return_tensors="pt")
policy = dict(custom_generate="{{ repo_id }}", trust_remote_code=True)
output = base.generate(**inputs, max_new_tokens=64, token_keep=0.5, mlp_keep=0.7, bits=8, **policy)
print(tokenizer.decode(output[0]))
```

## Details

| | |
|---|---|
| base model | {{ base_name }}{% if revision %} at revision `{{ revision }}`{% endif %} |
| actions | {{ n_actions }} |
| `token_keep` levels | {{ levels.token_keep }} |
| `mlp_keep` levels | {{ levels.mlp_keep }} |
| `bits` levels | {{ levels.bits }} |
{%- for axis in further %}
| `{{ axis.name }}` levels | {{ levels[axis.name] }} |
{%- endfor %}
| criterion | `{{ config.criterion }}`, page size {{ config.page_size }}, chosen per {{ config.selection }} |
| episode length | {{ config.episode_length }} |
{%- for row in dial_rows %}
{{ row }}
{%- endfor %}
| policy | {{ config.policy_num_layers }} layer(s), width {{ config.policy_hidden_size }}, {{ config.policy_num_heads }} heads |

{{ bits_note }}

## How it was made
{% if recipe %}
Settings that differ from their defaults, by stage of the training:

```yaml
{{ recipe }}
```
{% else %}
This is not recorded here. If you trained this policy, please write down the data, the command and the settings.
{% endif %}
## License
{% if license_name %}
The model card of the base states the license `{{ license_name }}`. This card repeats it for the policy
{%- if has_tokenizer %}, and for the base's tokenizer, which is stored here{% endif %}.
{% else %}
The license of the base is not known here, so none is stated for the policy. Add `license:` to the head of this card.
{% endif %}
## Versions

{% for name, version in versions.items() -%}
- {{ name }} {{ version }}
{% endfor %}
"""  # noqa: E501
