"""A recorded call is learnt from as it was served: its prompt, and what was answered."""

import shutil

import pytest

from quickmatch.engine.text.chat_template import ChatTemplate
from quickmatch.engine.text.tokenizer import Tokenizer
from quickmatch.store.documents import Trace
from quickmatch.tuning.draft_rows import RowEncoder
from quickmatch.tuning.draft_traces import asked_of

ANSWER = "because short history"


def trace(number=1, *, finish="stop", answer=ANSWER, version="tiny@2", **request):
    """A chat that was answered."""
    messages = [{"role": "user", "content": f"explain {number}"}]
    message = {"role": "assistant", "content": answer, "refusal": None}
    return Trace(
        id=f"t{number}", created_at=float(number), trace_id=f"t{number}", tenant="a",
        endpoint="chat", model="tiny", model_version=version, deployment="tiny",
        request={"messages": messages, **request},
        response={"choices": [{"finish_reason": finish, "message": message}]},
        tags={"app": "cards"},
    )  # fmt: skip


def completion(*texts, prompt, finish="stop", **request):
    choices = [{"index": i, "text": t, "finish_reason": finish} for i, t in enumerate(texts)]
    return trace().model_copy(
        update={
            "endpoint": "completion",
            "request": {"prompt": prompt, **request},
            "response": {"choices": choices},
        }
    )


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A model whose template thinks, unless it is told not to, and lists its tools."""
    made = tmp_path / "thinks"
    shutil.copytree(tiny_folder, made)
    path = made / "chat_template.jinja"
    begin = "{{ '<|im_start|>assistant\\n' }}"
    silent = "{% if enable_thinking is false %}{{ 'short ' }}{% endif %}"
    text = path.read_text()
    assert begin in text
    tools = "{% if tools %}{{ tools[0].function.name }}{% endif %}"
    path.write_text(tools + text.replace(begin, begin + silent))
    return made


def learnt(folder, call, regenerate=None):
    """Return the texts of prompt and answer that a call is learnt as."""
    asked = asked_of(call, RowEncoder(folder, version_id="tiny@2", regenerate=regenerate))
    if asked is None:
        return None
    decode = Tokenizer.from_folder(folder).decode
    output = asked.output and decode(asked.output, skip_special_tokens=False)
    return decode(asked.prompt, skip_special_tokens=False), output


PROMPT = "<|im_start|>user\nexplain 1<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("finish", "output"), [("stop", f"{ANSWER}<|im_end|>"), ("length", ANSWER)]
)
def test_an_answer_is_learnt_also_where_a_limit_cut_it(folder, finish, output):
    assert learnt(folder, trace(finish=finish)) == (PROMPT, output)


def test_another_version_s_answer_is_the_target_s_to_give(folder):
    assert learnt(folder, trace(version="old@1")) == (PROMPT, None)
    assert learnt(folder, trace(), regenerate=True) == (PROMPT, None)
    assert learnt(folder, completion("good", prompt="poor"), regenerate=True) == ("poor", None)


def test_a_chat_s_prompt_is_the_one_that_was_served(folder):
    tools = [{"type": "function", "function": {"name": "rating"}}]
    variables = {"enable_thinking": False}
    messages = [
        {"role": "developer", "content": "good", "name": None},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("poor", "normal")]},
    ]
    call = trace(messages=messages, tools=tools, chat_template_kwargs=variables, finish="length")
    served = ChatTemplate.from_folder(folder).render(messages, tools=tools, variables=variables)
    assert learnt(folder, call) == (served, ANSWER)
    assert served.startswith("rating<|im_start|>developer\ngood")
    assert served.endswith("assistant\nshort ")
    unused = call.model_copy(update={"request": {**call.request, "tool_choice": "none"}})
    assert learnt(folder, unused)[0] == served.removeprefix("rating")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (completion(" good", prompt="credit rating"), ("credit rating", " good")),
        (completion("a", "b", prompt=["credit", "income"]), ("credit", "a")),
        (completion("credit is", prompt="credit", echo=True), ("credit", " is")),
    ],
    ids=["text", "several", "echo"],
)
def test_a_completion_is_learnt_without_a_template(folder, call, expected):
    assert learnt(folder, call) == expected


@pytest.mark.parametrize("several", [False, True])
def test_a_completion_s_token_ids_are_taken_as_they_are(folder, several):
    ids = [300, 5, 7]
    call = completion("good", prompt=[ids, [9]] if several else ids)
    asked = asked_of(call, RowEncoder(folder, version_id="tiny@2", regenerate=None))
    assert asked.prompt == ids


@pytest.mark.parametrize(
    "call",
    [
        trace().model_copy(update={"status": 500}),
        trace().model_copy(update={"error": "the caller left"}),
        trace().model_copy(update={"response": None}),
        trace().model_copy(update={"response": {"choices": []}}),
        trace(answer=""),
        trace(answer=None),
        trace(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        trace(answer="half of a pair: \ud83d"),
        completion("", prompt="credit"),
        completion("good", prompt=""),
    ],
)
def test_a_call_without_anything_to_learn_is_left_out(folder, call):
    assert learnt(folder, call) is None
