"""What docs/api.md shows a newcomer to type is answered as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.http.served import served

pytestmark = pytest.mark.anyio

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
CURL = re.compile(
    r"^curl (?:-N )?http://127\.0\.0\.1:52415(\S+)(?: -H '(.+?): (.+?)' \\\n +-d '(.+)')?$",
    re.MULTILINE,
)


async def test_each_curl_command_is_answered() -> None:
    examples = CURL.findall(TEXT)
    assert len(examples) == len(re.findall(r"^curl ", TEXT, re.MULTILINE)), "one of another form"
    async with served() as place:
        for path, header, value, body in examples:
            sent = json.loads(body) if body else None
            headers = {header: value} if header else {}
            answer = await place.http.ask("POST" if body else "GET", path, sent, headers=headers)
            assert answer.status == 200, f"{path}: {answer.body!r}"


async def test_the_python_example_compiles() -> None:
    (code,) = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)
    compile(code, "docs/api.md", "exec")
