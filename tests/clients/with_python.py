"""Unmodified Python clients against a served API: run in an environment of their own, not by pytest.

    python with_python.py URL [CLIENT…]

Each function is one client; what it asserts is what its users rely on.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

URL = sys.argv[1]
COUNT: Any = [{"role": "user", "content": "count from 3 to 6"}]
WEATHER_SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}


def check(said: Any, wanted: Any) -> None:
    assert said == wanted, f"{said!r} is not {wanted!r}"


def openai_client() -> None:
    import openai
    import pydantic

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="default", messages=COUNT)
    check(answer.choices[0].message.content, "3 4 5 6")
    chunks = list(client.chat.completions.create(model="default", messages=COUNT, stream=True))
    check("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "3 4 5 6")
    with client.chat.completions.stream(model="default", messages=COUNT, tools=[WEATHER]) as stream:
        final = stream.get_final_completion().choices[0]
    check(final.finish_reason, "tool_calls")
    check(json.loads(final.message.tool_calls[0].function.arguments), {"city": "Oslo"})
    check(client.completions.create(model="default", prompt="count from 1 to 2").choices[0].text, "1 2")

    class Weather(pydantic.BaseModel):
        city: str
        rain: bool

    parsed = client.chat.completions.parse(model="default", messages=COUNT, response_format=Weather)
    check(parsed.choices[0].message.parsed, Weather(city="Oslo", rain=True))
    for bad, kind in (
        ({"model": "gpt-4o"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"n": 0}, openai.BadRequestError),
    ):
        try:
            client.chat.completions.create(**{"model": "default", "messages": COUNT, **bad})
        except kind as error:
            check(bool(error.body), True)
        else:
            raise AssertionError(f"{bad} was taken")
    openai_responses(client)
    openai_shapes(client)
    asyncio.run(openai_at_once())


def openai_responses(client: Any) -> None:
    first = client.responses.create(model="default", input="count from 3 to 6")
    check(first.output_text, "3 4 5 6")
    second = client.responses.create(model="default", input="count from 7 to 8", previous_response_id=first.id)
    check(second.output_text, "7 8")
    flat = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": True}
    called = client.responses.create(model="default", input="weather?", tools=[flat])
    call = next(item for item in called.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    told = client.responses.create(model="default", input=[result], previous_response_id=called.id, tools=[flat])
    check(told.output_text, "It says rain.")
    with client.responses.stream(model="default", input="count from 3 to 6") as stream:
        kinds = [event.type for event in stream]
        check(stream.get_final_response().output_text, "3 4 5 6")
    assert "response.output_text.delta" in kinds


def openai_shapes(client: Any) -> None:
    """The client itself takes any object for its types; programs that store answers by them do not."""
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response

    tools: Any = {"tools": [WEATHER]}
    for more in ({}, tools, {"logprobs": True, "top_logprobs": 2}):
        chat = client.chat.completions.with_raw_response.create(model="default", messages=COUNT, **more)
        ChatCompletion.model_validate_json(chat.content)
    response = client.responses.with_raw_response.create(model="default", input="count from 3 to 6")
    Response.model_validate_json(response.content)


async def openai_at_once() -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as client:

        async def one(last: int) -> None:
            messages: Any = [{"role": "user", "content": f"count from 1 to {last}"}]
            text = ""
            async for chunk in await client.chat.completions.create(
                model="default", messages=messages, stream=True
            ):
                text += chunk.choices[0].delta.content or ""
            check(text, " ".join(map(str, range(1, last + 1))))

        await asyncio.gather(*(one(last) for last in range(5, 13)))


def anthropic_client() -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    answer = client.messages.create(model="default", max_tokens=99, messages=COUNT)
    check([block.type for block in answer.content], ["thinking", "text"])
    check((answer.content[1].text, answer.stop_reason), ("3 4 5 6", "end_turn"))
    with client.messages.stream(model="default", max_tokens=99, messages=COUNT) as stream:
        check("".join(stream.text_stream), "3 4 5 6")
        check(stream.get_final_message().usage.output_tokens, 4)
    tool: Any = {"name": "get_weather", "input_schema": WEATHER_SCHEMA}
    called = client.messages.create(model="default", max_tokens=99, messages=COUNT, tools=[tool])
    use = next(block for block in called.content if block.type == "tool_use")
    check((use.name, use.input, called.stop_reason), ("get_weather", {"city": "Oslo"}, "tool_use"))
    turns = [
        *COUNT,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]},
    ]
    told = client.messages.create(model="default", max_tokens=99, messages=turns, tools=[tool])
    check(told.content[-1].text, "It says rain.")
    check(client.messages.count_tokens(model="default", messages=COUNT).input_tokens, len("count from 3 to 6"))
    try:
        client.messages.create(model="claude", max_tokens=9, messages=COUNT)
    except anthropic.NotFoundError:
        pass
    else:
        raise AssertionError("another model was taken")


def litellm_client() -> None:
    import litellm

    asked: Any = {"model": "openai/default", "api_base": f"{URL}/v1", "api_key": "none", "num_retries": 0}
    check(litellm.completion(messages=COUNT, **asked).choices[0].message.content, "3 4 5 6")
    chunks = litellm.completion(messages=COUNT, stream=True, **asked)
    check("".join(chunk.choices[0].delta.content or "" for chunk in chunks), "3 4 5 6")
    called = litellm.completion(messages=COUNT, tools=[WEATHER], **asked).choices[0].message.tool_calls[0]
    check(json.loads(called.function.arguments), {"city": "Oslo"})
    wished = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER_SCHEMA}}
    answer = litellm.completion(messages=COUNT, response_format=wished, **asked)
    check(json.loads(answer.choices[0].message.content)["city"], "Oslo")
    try:
        litellm.completion(messages=COUNT, temperature=9, **asked)
    except litellm.BadRequestError:
        pass
    else:
        raise AssertionError("a temperature of 9 was taken")


def langchain_client() -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Weather(BaseModel):
        """The weather somewhere."""

        city: str
        rain: bool

    model = ChatOpenAI(model="default", base_url=f"{URL}/v1", api_key="none", max_retries=0)
    check(model.invoke("count from 3 to 6").content, "3 4 5 6")
    check("".join(str(chunk.content) for chunk in model.stream("count from 3 to 6")), "3 4 5 6")
    called = model.bind_tools([WEATHER]).invoke("weather?").tool_calls[0]
    check((called["name"], called["args"]), ("get_weather", {"city": "Oslo"}))
    structured = model.with_structured_output(Weather, method="json_schema").invoke("weather?")
    check(structured, Weather(city="Oslo", rain=True))


def llm_client() -> None:
    folder = Path(tempfile.mkdtemp())
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: exod\n  model_name: default\n  api_base: {URL}/v1\n  supports_tools: true\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none"}
    for more in ((), ("--no-stream",)):
        command = [sys.executable, "-m", "llm", "prompt", "-m", "exod", *more, "count from 3 to 6"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        check(done.stdout.strip(), "3 4 5 6")


CLIENTS = {
    "openai": openai_client,
    "anthropic": anthropic_client,
    "litellm": litellm_client,
    "langchain": langchain_client,
    "llm": llm_client,
}

if __name__ == "__main__":
    for name in sys.argv[2:] or CLIENTS:
        CLIENTS[name]()
        print(f"{name}: fine")
