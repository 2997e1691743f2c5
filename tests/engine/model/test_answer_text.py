"""What is said, thought and called in an answer, from tokens of several kinds of vocabularies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exoengine.model.answer_text import AnswerText
from exoengine.model.chat_prompt import PromptError
from exoengine.model.text import Tokenizer
from exoengine.protocol import ChatMessage, GenerationRequest, ToolCall, Tools

SPECIAL = ("<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "</tool_call>{# tool_call.name #}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
STRICT = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}[{{ message.role }}]{{ message.content }}{% endfor %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}"
)
ALTERNATING = (
    "{% for message in messages if message.role != 'tool' %}"
    "{% if message.role != ('user', 'assistant')[loop.index0 % 2] %}"
    "{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}{# tools #}"
)

WEATHER = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}])


def byte_level(folder: Path, template: str, markers: Sequence[str] = (), *, in_sequence: bool = False) -> Tokenizer:
    """A vocabulary of bytes, where every character but ASCII's has several tokens."""
    import tokenizers
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()]) if in_sequence else decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in markers])
    return saved(folder, tokenizer, template)


def sentencepiece(folder: Path) -> Tokenizer:
    """A vocabulary whose tokens hold their space, with single bytes for what it lacks."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", *SPECIAL, "▁", "▁Paris", "▁is", "▁", "x", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return saved(folder, tokenizer, PLAIN)


def saved(folder: Path, tokenizer: Any, template: str) -> Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[1], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer(folder, None)


def asked(*messages: ChatMessage, **more: Any) -> GenerationRequest:
    return GenerationRequest("q", 99, messages=messages or (ChatMessage("user", "hi"),), **more)


class Told:
    """All that an answer of `text` gives, token by token."""

    def __init__(self, answer: AnswerText, tokens: Sequence[int], cut: bool = False) -> None:
        self.steps = [answer.add(token) for token in tokens]
        self.steps.append(answer.finish(cut=cut))
        self.text = "".join(step.text for step in self.steps)
        self.reasoning = "".join(step.reasoning for step in self.steps)
        self.calls: dict[int, list[str]] = {}
        for delta in (delta for step in self.steps for delta in step.calls):
            call = self.calls.setdefault(delta.index, ["", ""])
            call[0] += delta.name
            call[1] += delta.arguments


def told(tokenizer: Tokenizer, text: str, request: GenerationRequest | None = None, **more: Any) -> Told:
    request = request or asked()
    answer = tokenizer.answer_text(request, more.pop("thinks", False))
    return Told(answer, tokenizer.encode(text), **more)


@pytest.fixture
def tools() -> Tools:
    return Tools(WEATHER)


def test_a_completion_keeps_its_first_space_and_its_indents(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    request = GenerationRequest("q", 9, prompt="The capital of France is")
    assert told(tokenizer, " Paris", request).text == " Paris"
    assert told(tokenizer, "    return 1\n\n  x", request).text == "    return 1\n\n  x"


def test_sentencepiece_keeps_the_space_of_a_completion_and_drops_that_of_an_answer(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    tokens = [tokenizer._wrapped.convert_tokens_to_ids(piece) for piece in ("▁Paris", "▁is")]
    assert Told(tokenizer.answer_text(GenerationRequest("q", 9, prompt="a"), False), tokens).text == " Paris is"
    assert Told(tokenizer.answer_text(asked(), False), tokens).text == "Paris is"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_character_cut_by_the_limit_is_held_back(tmp_path: Path, kind: str) -> None:
    tokenizer = byte_level(tmp_path, PLAIN) if kind == "bytes" else sentencepiece(tmp_path)
    pieces = {tokenizer.pieces.piece(token): token for token in range(len(tokenizer._wrapped))}
    tokens = [pieces[bytes([byte])] for byte in "é🙂".encode()]
    request = GenerationRequest("q", 9, prompt="a")
    for length, shown in enumerate(["", "", "é", "é", "é", "é", "é🙂"]):
        answer = Told(tokenizer.answer_text(request, False), tokens[:length], cut=True)
        assert answer.text == shown


def test_control_tokens_never_reach_the_text(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    answer = told(tokenizer, "a<|im_start|>b")
    assert answer.text == "ab"
    assert [step.shows for step in answer.steps[:3]] == [True, False, True]
    assert tokenizer.pieces.piece(tokenizer.encode("<|im_start|>")[0]) == b"<|im_start|>"


@pytest.mark.parametrize("in_sequence", [False, True])
def test_pieces_are_the_bytes_of_tokens(tmp_path: Path, in_sequence: bool) -> None:
    tokenizer = byte_level(tmp_path, PLAIN, in_sequence=in_sequence)
    tokens = tokenizer.encode("é \x00🙂")
    assert b"".join(tokenizer.pieces.piece(token) for token in tokens) == "é \x00🙂".encode()


def test_stop_strings_over_tokens_leak_nothing_and_release_near_misses(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    assert told(tokenizer, "one END two", asked(stop=("END",))).text == "one "
    assert told(tokenizer, "one EN two", asked(stop=("END",))).text == "one EN two"
    assert told(tokenizer, "x世界y", asked(stop=("界",))).text == "x世"


def test_what_is_between_think_tags_is_reasoning(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN, MARKERS)
    answer = told(tokenizer, "<think>\nIt is\n\nfar.\n</think>\n\nNo.")
    assert (answer.reasoning, answer.text) == ("It is\n\nfar.", "No.")
    assert told(tokenizer, "hm\n</think>\n\nNo.", thinks=True).text == "No."
    assert told(tokenizer, "hm, a <", thinks=True, cut=True).reasoning == "hm, a <"


def test_the_template_that_opens_the_tag_is_noticed(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    assert tokenizer.prompt(asked())[1]
    assert not tokenizer.prompt(asked(template='{"enable_thinking": false}'))[1]
    assert not tokenizer.prompt(asked(ChatMessage("user", "<think>"), template='{"enable_thinking": false}'))[1]


def test_a_call_in_json_is_told_while_it_is_written(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    text = 'Wait.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os}lo"}}\n</tool_call>'
    answer = told(tokenizer, text, asked(tools=tools))
    assert answer.text == "Wait."
    assert answer.calls == {0: ["get_weather", '{"city": "Os}lo"}']}
    pieces = [delta for step in answer.steps for delta in step.calls]
    assert len(pieces) > 5, "the arguments come in pieces"
    assert pieces[0].id.startswith("call_")


def test_two_calls_have_their_own_index_and_id(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    one = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    answer = told(tokenizer, f"{one}\n{one}", asked(tools=tools))
    assert answer.calls == {0: ["get_weather", "{}"], 1: ["get_weather", "{}"]}
    ids = [delta.id for step in answer.steps for delta in step.calls if delta.id]
    assert len(set(ids)) == 2
    again = told(tokenizer, f"{one}\n{one}", asked(tools=tools))
    assert ids == [delta.id for step in again.steps for delta in step.calls if delta.id], "a replay says the same"
    single = Tools(WEATHER, parallel=False)
    alone = tokenizer.answer_text(asked(tools=single), False)
    stopped = [alone.add(token).stopped for token in tokenizer.encode(f"{one}\n{one}")]
    assert stopped.index(True) == len(tokenizer.encode(one)) - 1


def test_what_is_no_call_is_shown_as_it_was_written(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    answer = told(tokenizer, "<tool_call>not json</tool_call>.", asked(tools=tools))
    assert (answer.text, answer.calls) == ("not json.", {})
    assert told(tokenizer, "<tool_call>x</tool_call>").text == "<tool_call>x</tool_call>", "nobody spoke of tools"


def test_what_a_parser_makes_of_a_models_nonsense_ends_nothing(tools: Tools) -> None:
    from exoengine.model.tool_calls import CallReader

    for found in ({1, 2}, b"x", {"name": "f", "arguments": {1j: b""}}, {"name": "f", "arguments": {"a": "\ud800"}}):
        reader = CallReader("q", tools.specs, lambda text, tools, found=found: found)  # type: ignore[misc]
        reader.feed("x")
        assert reader.close() is None


def test_a_bare_call_is_a_call_where_the_model_was_told_of_tools(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    answer = told(tokenizer, '{"name": "get_weather", "parameters": {"city": "Oslo"}}', asked(tools=tools))
    assert (answer.text, answer.calls) == ("", {0: ["get_weather", '{"city": "Oslo"}']})
    for text in ('{"name": "other", "arguments": {}}', '{"a": 1}', "{" * 400, "Sure: {}"):
        assert told(tokenizer, text, asked(tools=tools)).text == text


HARMONY = ("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>")


def test_the_channels_of_gpt_oss_are_told_apart(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, PLAIN, HARMONY)
    thought = "<|channel|>analysis<|message|>Hm.<|end|>"
    said = "<|start|>assistant<|channel|>final<|message|>No.<|return|>"
    answer = told(tokenizer, thought + said)
    assert (answer.reasoning, answer.text) == ("Hm.", "No.")
    for header in (
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>",
    ):
        answer = told(tokenizer, f'{thought}{header}{{"city": "Oslo"}}', asked(tools=tools))
        assert (answer.text, answer.calls) == ("", {0: ["get_weather", '{"city": "Oslo"}']})
        assert answer.reasoning == "Hm."


def test_tools_are_folded_into_text_where_the_template_knows_none(tmp_path: Path, tools: Tools) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    turns = (
        ChatMessage("system", "Be kind."),
        ChatMessage("user", "weather?"),
        ChatMessage("assistant", "", (ToolCall("c", "get_weather", '{"city": "Oslo"}'),)),
        ChatMessage("tool", "rain", tool_call_id="c"),
    )
    text = tokenizer.decode(tokenizer.prompt_tokens(asked(*turns, tools=tools)))
    assert text.index("get_weather") < text.index("Be kind.") < text.index("weather?")
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "user\n<tool_response>\nrain\n</tool_response>" in text
    native = byte_level(tmp_path, WITH_TOOLS, MARKERS)
    text = native.decode(native.prompt_tokens(asked(*turns, tools=tools)))
    assert "tool\nrain" in text
    assert "tool_response" not in text


def test_system_messages_go_where_the_template_takes_them(tmp_path: Path) -> None:
    turns = (ChatMessage("user", "a"), ChatMessage("system", "b"), ChatMessage("user", "c"))
    strict = byte_level(tmp_path, STRICT)
    assert strict.decode(strict.prompt_tokens(asked(*turns))) == "[system]b[user]a[user]c"
    none = byte_level(tmp_path, NO_SYSTEM)
    assert none.decode(none.prompt_tokens(asked(*turns))) == "[user]b\n\na[user]c"
    plain = byte_level(tmp_path, PLAIN)
    assert "user\na\nsystem\nb\nuser\nc" in plain.decode(plain.prompt_tokens(asked(*turns)))


def test_turns_of_the_same_role_are_joined_where_the_template_wants_them_to_alternate(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, ALTERNATING)

    def written(*turns: ChatMessage) -> str:
        return tokenizer.decode(tokenizer.prompt_tokens(asked(*turns)))

    user, system, said = ChatMessage("user", "a"), ChatMessage("system", "b"), ChatMessage("assistant", "c")
    assert written(user, user, said, said, user) == "[user]a\na[assistant]c\nc[user]a"
    assert written(user, system, user) == "[user]b\n\na\na"
    called = ChatMessage("assistant", "", (ToolCall("1", "get_weather", "{}"),))
    result = ChatMessage("tool", "rain", tool_call_id="1")
    assert written(user, user, called, result, user) == "[user]a\na[assistant]get_weather[user]a"
    with pytest.raises(PromptError, match="must alternate"):
        written(said, user)


def test_reasoning_in_the_history_is_dropped_and_an_answer_can_be_continued(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN, MARKERS)
    turns = (ChatMessage("user", "a"), ChatMessage("assistant", "<think>\nhm\n</think>\n\nSo"))
    text = tokenizer.decode(tokenizer.prompt_tokens(asked(*turns, continues=True)))
    assert text.endswith("assistant\nSo")


def test_the_template_cannot_be_replaced_by_a_client(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, PLAIN)
    with pytest.raises(PromptError, match="chat_template"):
        tokenizer.prompt_tokens(asked(template='{"chat_template": "x"}'))
