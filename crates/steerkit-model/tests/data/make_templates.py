"""Renderings of chat templates by transformers: the reference for tests/text/chat.rs.

    python make_templates.py > templates.json

Each template renders the same conversation with transformers' own Jinja settings. A template that fails gives null.
Needs transformers and jinja2.
"""
import json, sys
from transformers.utils.chat_template_utils import _compile_jinja_template

MESSAGES = [{"role": "system", "content": "S y s"}, {"role": "user", "content": " Hi <b> "}, {"role": "assistant", "content": "H\u00e9\n\"x\""}, {"role": "user", "content": "Bye"}]

# Whole templates of the common shapes, then one construct each.
TEMPLATES = [
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{{ message['content'] }}{% endfor %}",
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        {{- raise_exception('Conversation roles must alternate') }}\n    {%- endif %}\n    {%- if message['role'] == 'user' %}\n        {%- if loop.first and system_message is defined %}\n            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n        {%- endif %}\n    {%- elif message['role'] == 'assistant' %}\n        {{- ' ' + message['content'] + eos_token}}\n    {%- endif %}\n{%- endfor %}\n",
    "{%- set ns = namespace(found=false, system_prompt='', count=0) -%}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- set ns.system_prompt = message['content'] %}{%- set ns.found = true %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}|{{ ns.found }}{%- for message in messages %}{%- if message.role == 'assistant' and message.content is not none %}{%- set content = message.content %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{ '<|A|>' ~ content ~ eos_token }}{%- endif %}{%- set ns.count = ns.count + 1 %}{%- endfor -%}{{ ns.count }}",
    "{%- macro show(m, tag='x') -%}<{{ tag }}>{{ m.content | trim }}</{{ tag }}>{%- endmacro -%}{% for m in messages %}{{ show(m) }}{{ show(m, tag=m.role) }}{% endfor %}",
    "line\n  {% if true %}\n  body\n  {% endif %}\nend\n",
    "{# comment #}\n{% set x = 1 %}\nx={{ x }}\n\n",
    "{{ messages | tojson }}",
    "{{ messages[:2] | tojson(indent=2) }}",
    "{{ {'b': [1, 2.5, none, true], 'a': 'caf\u00e9'} | tojson }}",
    "{{ {'b': 1, 'a': {'z': [], 'y': {}}} | tojson(sort_keys=true, indent=4) }}",
    "{{ messages | map(attribute='role') | join(',') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
    "{{ messages | rejectattr('role', 'in', ['user', 'system']) | list | length }}",
    "{{ (messages | last).content }}{{ (messages | first).role }}{{ messages[-1].role }}",
    "{{ messages[::-1] | map(attribute='role') | list }}",
    "{{ 'abcdef'[1:4] }}{{ 'abcdef'[::-1] }}{{ 'abcdef'[-2:] }}{{ 'abc'[0] }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }} {% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('x', 'd') }}{{ messages[0].get('y') }}",
    "{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}",
    "{{ ' x '.strip() }}|{{ 'a,b,c'.split(',') }}|{{ 'Abc'.lower() }}{{ 'abc'.upper() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a b'.title() }}|{{ 'a-b'.replace('-', '+') }}|{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('x') }}",
    "{{ 'a' * 3 }}{{ [1, 2] * 2 }}{{ [1] + [2, 3] }}{{ 7 // 2 }}{{ 7 % 3 }}{{ 2 ** 5 }}{{ 7 / 2 }}{{ -3 }}{{ 1 + 2.5 }}",
    "{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' in 'abc' }}{{ 'z' not in 'abc' }}{{ 2 in [1, 2] }}{{ 'role' in messages[0] }}{{ 1 == 1.0 }}{{ 'a' != 'b' }}",
    "{{ none is none }}{{ x is defined }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ 'a' is string }}{{ 3 is number }}{{ messages is sequence }}{{ true is boolean }}{{ 3 is odd }}",
    "{{ x | default('d') }}{{ '' | default('e', true) }}{{ [3, 1, 2] | sort }}{{ [1, 2, 3] | sum if false else 's' }}{{ ['b', 'a', 'b'] | unique | list }}{{ [1, 2, 3] | reverse | list }}",
    "{{ 'a\nb\n\nc' | indent(2) }}|{{ 'a\nb' | indent(width=4, first=true) }}|{{ 'hello' | capitalize }}|{{ 'aXbX' | replace('X', '') }}|{{ ' t ' | trim }}|{{ 'abc' | length }}|{{ 5 | string + '!' }}|{{ '12' | int + 1 }}",
    "{{ 'a' if tools else 'b' }}{{ 'c' if tools is none else 'd' }}{{ not tools }}{{ documents is defined }}",
    "{% set x %}cap{{ 1 }}{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}{% set a, b = 1, 2 %}{{ a + b }}{% with y = 5 %}{{ y }}{% endwith %}",
    "{{ true }}{{ none }}{{ 1.0 }}{{ [true, none, 'x'] }}{{ {'a': 'b'} }}{{ ('a', 1) }}",
    "{{ x }}{{ x ~ 'y' }}", "{{ x.y }}", "{{ messages[9] }}", "{{ 'a' + 1 }}", "{{ messages[0].nothing is defined }}{{ messages[0]['nothing'] }}",
    "{% for i in range(3) %}{{ i }}{% endfor %}{{ range(2, 8, 3) | list }}",
    "{% if messages[0]['role'] in ['system', 'developer'] and not false or x %}y{% endif %}",
    "{{ dict(a=1, b='x') | tojson }}{{ {'k': 2} | items | list }}{{ {'b': 1, 'a': 2} | dictsort }}",
    "{{ 'x' | upper ~ ('y' | lower) }}{{- ' trimmed ' -}} z {%- if true -%} w {%- endif -%}",
]


def main():
    out = []
    for template in TEMPLATES:
        try:
            text = _compile_jinja_template(template).render(messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        except Exception as e:
            print("fails:", template[:60], "|", e, file=sys.stderr)
            text = None
        out.append(json.dumps({"template": template, "text": text}))
    print("[\n" + ",\n".join(out) + "\n]")


main()
