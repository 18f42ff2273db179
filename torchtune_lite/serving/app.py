"""The addresses of OpenAI's API that are served."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from torchtune_lite.serving.objects import Answer, ChatAnswer, CompletionAnswer, error_object, model_object
from torchtune_lite.serving.parameters import Call, Reader, RequestError
from torchtune_lite.serving.samples import Piece, pieces
from torchtune_lite.serving.worker import Worker
from torchtune_lite.utils import counted, get_logger

MOST_BYTES = 2**24
"""Of a request."""

log = get_logger()


class Service:
    """Answers requests for the model `name`, read by `reader`, through the `worker`."""

    def __init__(self, name: str, reader: Reader, worker: Worker) -> None:
        self.name, self.reader, self.worker = name, reader, worker
        self.created = int(time.time())

    async def chat(self, request: Any) -> Any:
        """Answer `POST /v1/chat/completions`."""
        return await self._answer(request, self.reader.chat, ChatAnswer)

    async def complete(self, request: Any) -> Any:
        """Answer `POST /v1/completions`."""
        return await self._answer(request, self.reader.completion, CompletionAnswer)

    async def models(self, request: Any) -> Any:
        """Answer `GET /v1/models` and, of one of them, `GET /v1/models/NAME`."""
        from starlette.responses import JSONResponse

        model = model_object(self.name, self.created, self.reader.max_seq_len)
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [model]})
        self._check_name(request.path_params["name"])
        return JSONResponse(model)

    async def _answer(self, request: Any, read: Any, kind: type[Answer]) -> Any:
        from starlette.responses import JSONResponse, StreamingResponse

        body = await _json(request)
        call = read(body)
        self._check_name(body.get("model"))
        num_samples = len(call.prompts) * call.n
        answer = kind(self.name, num_samples, sum(map(len, call.prompts)), call.samplings[0].logprobs is not None)
        news = self._observed(request.url.path, call, answer)
        if call.stream:
            events = _events(news, answer, call.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        waiting = [asyncio.ensure_future(each) for each in (_all(news), _left(request))]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting[0].done():
                waiting[0].result()
                return JSONResponse(answer.whole())
            return JSONResponse({}, status_code=499)  # which nobody reads
        finally:
            for each in waiting:
                each.cancel()

    def _check_name(self, name: str | None) -> None:
        if name not in (None, self.name):
            message = f"the model '{name}' is not served; '{self.name}' is"
            raise RequestError(message, "model", status=404, code="model_not_found")

    async def _observed(self, path: str, call: Call, answer: Answer) -> AsyncIterator[Piece]:
        """Yield the pieces of an answer, added to it, and log in the end what it was."""
        start = time.perf_counter()
        try:
            async for piece in pieces(call, self.worker, self.reader.tokenizer):
                answer.add(piece)
                yield piece
        finally:
            prompt, new = counted(answer.prompt_tokens, "token"), counted(answer.completion_tokens, "token")
            left = ", not to its end" if answer.num_running else ""
            log.info("%s: %s of prompt, %s of answer in %.2f s%s", path, prompt, new, time.perf_counter() - start, left)


async def _all(news: AsyncIterator[Piece]) -> None:
    async for _ in news:
        pass


async def _left(request: Any) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(news: AsyncIterator[Piece], answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    """Write an answer as server-sent events, as it comes."""
    try:
        async for piece in news:
            for chunk in answer.chunks(piece, include_usage):
                yield _event(chunk)
    except RequestError as error:
        yield _event(error_object(error))
    yield "data: [DONE]\n\n"


def _event(content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _json(request: Any) -> Any:
    """Read the body of a request, which a browser sends for another site's page only after it has asked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("send the body with the header Content-Type: application/json", status=415)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise RequestError(f"the body has more than {MOST_BYTES // 2**20} MiB", status=413)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error


def make_app(service: Service, hosts: list[str] | None) -> Any:
    """Make the ASGI application; `hosts` are the names by which it may be called, None: any."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
    ]
    served = ", ".join(f"{'POST' if 'POST' in route.methods else 'GET'} {route.path}" for route in routes)

    async def refuse(request: Any, error: RequestError) -> Any:
        return JSONResponse(error_object(error), status_code=error.status)

    async def refuse_address(request: Any, error: HTTPException) -> Any:
        message = f"{request.method} {request.url.path} is not served; {served} are"
        return await refuse(request, RequestError(message, status=error.status_code))

    async def leave(request: Any, error: ClientDisconnect) -> Any:
        return Response(status_code=499)  # which nobody reads

    handlers = {RequestError: refuse, HTTPException: refuse_address, ClientDisconnect: leave}
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else []
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers)
