"""A daemon that answers clients with whatever they ask for: numbers, a call of their tool, JSON by their schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from exod.daemon_api.interface import GenerationDelta, GenerationEnd, TextDelta, Usage
from exoengine.protocol import CallDelta, GenerationRequest
from tests.fake_daemon import FakeDaemon

USAGE = Usage(12, 3, 4)


class AnsweringDaemon(FakeDaemon):
    """It thinks before each answer, so that clients see how that looks."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        said = request.messages[-1] if request.messages else None
        thought = TextDelta(0, "", reasoning="Hm.")
        if request.tools is not None and said is not None and said.role != "tool":
            self.requests.append(request)
            yield thought
            yield TextDelta(1, "", calls=(CallDelta(0, '{"city"', "call_1", "get_weather"),))
            yield TextDelta(2, "", calls=(CallDelta(0, ': "Oslo"}'),))
            yield GenerationEnd("stop", USAGE)
        elif request.grammar is not None:
            yield TextDelta(0, '{"city": "Oslo",')
            yield TextDelta(1, ' "rain": true}')
            yield GenerationEnd("stop", USAGE)
        elif said is not None and said.role == "tool":
            yield TextDelta(0, f"It says {said.content}.")
            yield GenerationEnd("stop", USAGE)
        else:
            if request.messages is not None:
                yield thought
            async for delta in super().generate(request):
                yield delta
