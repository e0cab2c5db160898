"""A real engine behind the balancer: `transformers serve` on a model of a few thousand parameters, made here.

Runs where `transformers[serving]`, `torch` and `accelerate` are installed; nothing in this repository installs them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import skyloom_testing_engine as engines
from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import ServiceSettings

_MISSING = [one for one in ("torch", "transformers", "accelerate") if importlib.util.find_spec(one) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (an optional extra)"),
]
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("model"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {sign: number for number, sign in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def port(model: str) -> Iterator[int]:
    found = Path(sys.executable).parent / "transformers"
    command = str(found) if found.exists() else shutil.which("transformers")
    if command is None:
        pytest.skip("the transformers command is not on PATH")
    (one,) = engines.free_ports(1)
    process = subprocess.Popen(
        [command, "serve", "--host", "127.0.0.1", "--port", str(one), model],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    yield one
    process.terminate()
    process.wait(30)


async def test_chat_and_stream(kit: Any, model: str, port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.2)
    endpoint = Endpoint(id="t", url=f"http://127.0.0.1:{port}", engine="transformers")
    service = ServiceSettings(name="mini", endpoints=(endpoint,), openai={"models": [model]})
    front = {"models": {"mini": {"to": [{"service": "mini", "model": model}]}}}
    lb = await kit.lb(services={"mini": service}, make_front=make_front, front=front)
    ask: list[Any] = [{"role": "user", "content": "hello"}]
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{lb.port}/v1", api_key="x", max_retries=0, timeout=120
    ) as client:
        assert [one.id async for one in client.models.list()] == ["mini"]
        whole = await client.chat.completions.create(model="mini", messages=ask, max_tokens=8)
        assert whole.choices[0].message.content is not None
        stream = await client.chat.completions.create(model="mini", messages=ask, max_tokens=8, stream=True)
        chunks = [chunk async for chunk in stream]
        assert any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
