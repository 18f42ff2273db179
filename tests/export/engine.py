"""llama.cpp's own engine, in this process: what it makes of a GGUF."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

VISIBLE = 300


class Engine:
    """A model loaded from a file, asked with ids, texts or chats."""

    def __init__(self, path: Path, lora: Path | None = None, context: int = 512) -> None:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(path), context, 1, 1
        params.warmup, params.port, params.verbosity, params.fit_params = False, 0, 0, False
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # not F16: to see less than 1e-3
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self.server = xllamacpp.Server(params)

    def log_probs(self, prompt: list[int], count: int = 10) -> dict[int, float]:
        """The likeliest next tokens, likeliest first. A bias makes it take a token whose text it shows at once."""
        answer = self._complete(prompt, max_tokens=1, logprobs=count, logit_bias=[[VISIBLE, 1e6]])
        [found] = answer["choices"][0]["logprobs"]["content"]
        return {each["id"]: each["logprob"] for each in found["top_logprobs"]}

    def greedy(self, prompt: list[int] | str, max_tokens: int) -> list[int]:
        found = self._complete(prompt, max_tokens=max_tokens, logprobs=1)["choices"][0]["logprobs"]["content"]
        return [each["id"] for each in found]

    def _complete(self, prompt: Any, **more: Any) -> dict[str, Any]:
        return self.server.handle_completions({"prompt": prompt, "temperature": 0, "cache_prompt": False, **more})

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        return self._post("tokenize", content=text, add_special=add_special, parse_special=True)["tokens"]

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a chat as its own template writes it."""
        return self.encode(self._post("apply-template", messages=messages)["prompt"], add_special=True)

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.server.listening_address}/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())
