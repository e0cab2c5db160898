"""A real engine behind the balancer: `transformers serve` on a model of a hundred thousand parameters, made here.

Runs where `transformers[serving]`, `torch` and `accelerate` are installed; nothing in this repository installs them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import skyloom_testing_engine as engines
from skyloom_common.contracts.endpoints import Endpoint
from skyloom_lb.fronts import make_front
from skyloom_lb.settings import Health, ServiceSettings

_MISSING = [one for one in ("torch", "transformers", "accelerate") if importlib.util.find_spec(one) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (an optional extra)"),
]
ASK: list[Any] = [{"role": "user", "content": "hello"}]
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
    made = LlamaForCausalLM(config)
    letters = {words[chr(sign)] for sign in range(ord("a"), ord("z") + 1)}
    others = [number for number in words.values() if number not in letters]
    made.lm_head.weight.data[others] = 0  # so that it says nothing but letters, one a token, without an end
    made.save_pretrained(folder)
    return folder


class Replicas:
    """`transformers serve`, several times."""

    def __init__(self, command: str, model: str, count: int) -> None:
        self.ports = engines.free_ports(count)
        self.processes = {
            f"t{number}": subprocess.Popen(
                [command, "serve", "--host", "127.0.0.1", "--port", str(port), model],
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number, port in enumerate(self.ports)
        }
        self.endpoints = tuple(
            Endpoint(id=name, url=f"http://127.0.0.1:{port}", engine="transformers")
            for name, port in zip(self.processes, self.ports, strict=True)
        )

    async def ready(self) -> None:
        async with asyncio.timeout(240):
            for port, process in zip(self.ports, self.processes.values(), strict=True):
                while process.poll() is None:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    except OSError:
                        await asyncio.sleep(0.2)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()


@pytest.fixture(scope="module")
def replicas(model: str) -> Iterator[Replicas]:
    found = Path(sys.executable).parent / "transformers"
    command = str(found) if found.exists() else shutil.which("transformers")
    if command is None:
        pytest.skip("the transformers command is not on PATH")
    made = Replicas(command, model, 3)
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
async def world(kit: Any, model: str, replicas: Replicas) -> AsyncIterator[tuple[Any, openai.AsyncOpenAI]]:
    """Two services over the same replicas: one as it comes, one that is told that it continues completions."""
    await replicas.ready()
    health = Health(slow_start_seconds=0)
    names = {"mini": {}, "mini-on": {"continuation": "on"}}
    services = {
        name: ServiceSettings(
            name=name, endpoints=replicas.endpoints, health=health, openai={"models": [name], **fields}
        )
        for name, fields in names.items()
    }
    front = {"models": {name: {"to": [{"service": name, "model": model}]} for name in names}}
    lb = await kit.lb(services=services, make_front=make_front, front=front)
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{lb.port}/v1", api_key="x", max_retries=0, timeout=120
    ) as client:
        yield lb, client


async def test_chat_completions_and_streams(world: tuple[Any, openai.AsyncOpenAI]) -> None:
    lb, client = world
    assert [one.id async for one in client.models.list()] == ["mini", "mini-on"]
    for _ in range(3):  # each replica once
        whole = await client.chat.completions.create(model="mini", messages=ASK, max_tokens=8)
        assert len(whole.choices[0].message.content or "") == 8
        assert whole.usage is not None and whole.usage.completion_tokens == 8
    stream = await client.chat.completions.create(model="mini", messages=ASK, max_tokens=8, stream=True)
    chunks = [chunk async for chunk in stream]
    text = "".join(one.delta.content or "" for chunk in chunks for one in chunk.choices)
    assert text == whole.choices[0].message.content
    assert any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
    completion = await client.completions.create(model="mini", prompt="hello", max_tokens=8)
    assert len(completion.choices[0].text) == 8
    rows = lb.worker.snapshot()
    assert rows["models"]["mini"]["completion_tokens"] == 5 * 8
    served = rows["services"]["mini"]["endpoints"].values()
    assert all(one["stats"]["attempts"] for one in served)


def serving(lb: Any, service: str) -> str:
    (busy,) = [one.id for one in lb.worker.balancer.services[service].backends.values() if one.in_flight]
    return str(busy)


async def test_a_killed_replica_under_a_chat_is_told_and_the_next_request_is_served(
    world: tuple[Any, openai.AsyncOpenAI], replicas: Replicas
) -> None:
    """This engine is not known to continue a message (it refuses to), so that a broken chat ends with an error; never as if it were whole."""
    lb, client = world
    stream = await client.chat.completions.create(model="mini", messages=ASK, max_tokens=400, stream=True)
    seen = ""
    with pytest.raises(openai.APIError, match="broke off and cannot be continued"):
        async for chunk in stream:
            if not seen and chunk.choices and chunk.choices[0].delta.content:
                replicas.kill(serving(lb, "mini"))
            seen += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert 0 < len(seen) < 400
    for _ in range(3):
        whole = await client.chat.completions.create(model="mini", messages=ASK, max_tokens=4)
        assert len(whole.choices[0].message.content or "") == 4


async def test_a_killed_replica_under_a_completion_is_not_seen(
    world: tuple[Any, openai.AsyncOpenAI], replicas: Replicas
) -> None:
    """Prompt and text so far are a prompt to any engine: told so, the balancer goes on."""
    lb, client = world
    whole = await client.completions.create(model="mini-on", prompt="hello", max_tokens=400)
    stream = await client.completions.create(model="mini-on", prompt="hello", max_tokens=300, stream=True)
    seen = ""
    finish = None
    async for chunk in stream:
        if not seen:
            replicas.kill(serving(lb, "mini-on"))
        for one in chunk.choices:
            seen += one.text
            finish = one.finish_reason or finish
    assert lb.worker.balancer.services["mini-on"].stats.resumes == 1
    assert finish == "length"
    assert len(seen) >= 300 and whole.choices[0].text.startswith(seen)
