import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quickmatch.core.errors import InvalidRequest, ModelLoadError
from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer_config import TokenizerConfig
from tests.unit.engine.text.tokenizers_for_tests import train_byte_level, write_folder

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# In the manner of Llama 3: BOS, headers, trimmed content, a system block with tools in it.
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|header|>system<|end|>" + date_string + "\\n" + system_message }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("only one tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}' }}
    {%- elif message.role == 'tool' %}
        {{- "<|header|>ipython<|end|>" + (message.content | tojson) }}
    {%- else %}
        {{- '<|header|>' + message['role'] + '<|end|>' + message['content'] | trim }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|end|>\\n\\n' }}{% endif %}
"""

# In the manner of Mistral: strict turns, loop controls, namespace, EOS behind the assistant.
INST = """{{ bos_token }}
{% set state = namespace(turns=0) %}
{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% continue %}
    {% endif %}
    {% if (message['role'] == 'user') != (state.turns % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {% endif %}
    {% set state.turns = state.turns + 1 %}
    {% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
    {%- else %}
 {{ message['content'] }}{{ eos_token }}
    {%- endif %}
{% endfor %}
"""

USER = {"role": "user", "content": " Why was I rated <poor>? ä🙂 "}
ANSWER = {"role": "assistant", "content": "Late payments & 'debts'."}
SYSTEM = {"role": "system", "content": "  Explain ratings.\n"}
TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "rate", "arguments": {"age": 30, "x": "ü<"}}}
    ],
}
TOOLS = [{"type": "function", "function": {"name": "rate", "description": "Rates <b> & 'c'"}}]


def make_folder(path: Path, template: Any) -> Path:
    return write_folder(
        path,
        train_byte_level(),
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        chat_template=template,
    )


@pytest.mark.parametrize(
    ("template", "messages", "tools"),
    [
        (CHATML, [USER], None),
        (CHATML, [SYSTEM, USER, ANSWER, USER], None),
        (CHATML, [SYSTEM, USER, ANSWER], None),
        (HEADERS, [USER], None),
        (HEADERS, [SYSTEM, USER, ANSWER, USER], None),
        (HEADERS, [USER, TOOL_CALL, {"role": "tool", "content": "poor"}], TOOLS),
        (INST, [USER], None),
        (INST, [SYSTEM, USER, ANSWER, USER], None),
    ],
)
def test_renders_as_transformers_does(
    tmp_path: Path, template: str, messages: list[Any], tools: list[Any] | None
) -> None:
    folder = make_folder(tmp_path, template)
    ours, theirs = ChatTemplate.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    for prompt in (True, False):
        assert ours.render(
            messages, tools=tools or (), add_generation_prompt=prompt
        ) == theirs.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, tokenize=False
        )


def test_further_variables_reach_the_template(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, CHATML)
    ours, theirs = ChatTemplate.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    text = ours.render([USER], variables={"enable_thinking": False})
    assert text.endswith("<think>\n\n</think>\n\n")
    assert text == theirs.apply_chat_template(
        [USER], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )


def test_variables_cannot_replace_the_messages() -> None:
    chat = make("{{ messages | length }}{{ tools }}{{ add_generation_prompt }}")
    variables = {"messages": [], "tools": [1], "add_generation_prompt": False}
    assert chat.render([USER], variables=variables) == "1NoneFalse"


def make(template: str, **templates: str) -> ChatTemplate:
    return ChatTemplate(TokenizerConfig(chat_templates={"default": template, **templates}))


def test_the_templates_own_refusal_is_told() -> None:
    with pytest.raises(InvalidRequest, match=r"refuses these messages: Conversation roles must"):
        make(INST).render([ANSWER])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[7].role }}",
        "{{ 'a' + messages[0].content }}",
        "{{ 1 // 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_whatever_goes_wrong_is_the_requests_error(template: str) -> None:
    with pytest.raises(InvalidRequest, match=r"refuses these messages: .+"):
        make(template).render([{"role": "user", "content": None}])


def test_no_template_names_the_remedy() -> None:
    with pytest.raises(InvalidRequest, match=r"use /v1/completions, or put a chat_template\.jinja"):
        ChatTemplate(TokenizerConfig()).render([USER])


def test_a_template_that_is_not_jinja() -> None:
    with pytest.raises(ModelLoadError, match=r"'default' is not valid, line 2: "):
        make("{% for m in messages %}\n{{ m. }}{% endfor %}")


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = make("{{ messages[0].content }}")
    assert chat.render([{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"),
        ({"type": "text"}, "'text'"),
        ("bare", "'str'"),
        ({}, "None"),
    ],
)
def test_other_parts_are_refused(part: Any, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"part of type {kind}; this model reads only"):
        make("{{ messages[0].content }}").render([{"role": "user", "content": [part]}])


def test_tool_arguments_as_json_text_become_objects() -> None:
    chat = make("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    function: dict[str, Any] = {"name": "f", "arguments": '{"a": "ü"}'}
    message = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    assert chat.render([message]) == '{"a": "ü"}'
    assert function["arguments"] == '{"a": "ü"}'  # the caller's message is left as it was
    function["arguments"] = "{broken"
    assert chat.render([message]) == '"{broken"'


def test_the_messages_stay_the_callers() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    before = json.dumps(messages)
    make(CHATML).render(messages)
    assert json.dumps(messages) == before


# ---- where templates come from


def test_tools_choose_their_own_template(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = make_folder(tmp_path, named)
    chat, theirs = ChatTemplate.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    assert chat.render([USER]) == "plain"
    assert chat.render([USER], tools=TOOLS) == "tools"
    assert theirs.apply_chat_template([USER], tools=TOOLS, tokenize=False) == "tools"


def test_a_template_file_stands_before_the_configuration(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "configuration")
    (folder / "chat_template.jinja").write_text("file")
    extra = folder / "additional_chat_templates"
    extra.mkdir()
    (extra / "tool_use.jinja").write_text("extra")
    chat, theirs = ChatTemplate.from_folder(folder), AutoTokenizer.from_pretrained(str(folder))
    assert chat.render([USER]) == theirs.apply_chat_template([USER], tokenize=False) == "file"
    assert chat.render([USER], tools=TOOLS) == "extra"


def test_special_tokens_may_come_from_their_own_file(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<b>"}, "eos_token": "<e>"})
    )
    (tmp_path / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}"})
    )
    assert ChatTemplate.from_folder(tmp_path).render([USER]) == "<b><e>"
