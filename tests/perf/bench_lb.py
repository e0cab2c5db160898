"""The load balancer's bars, each candidate in the same interleaved run: it alone on one core, endpoints and wrk on the other.

Three nginx answer at once with a chat completion; medians of the rounds, and of the ratios of each round: a machine whose
speed drifts is the same one within a round. Loopback only, about five minutes. What is not installed is left out with a line
saying so: `apt-get install nginx-light wrk`; the Rust routers by
`pip install --no-deps --target build/bench-routers vllm-router sglang-router setproctitle`; the peers' Python balancers, each in
an environment of its own, by `python3 -m venv build/bench-skypilot && build/bench-skypilot/bin/pip install skypilot` and
`python3 -m venv build/bench-litellm && build/bench-litellm/bin/pip install 'litellm[proxy]'`. They are used as they are, by their
command lines. `run()` gives rows (name, value, unit, bar).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import psutil

Row = tuple[str, float, str, str]
ROUNDS, SECONDS = 5, 2
STREAM_ROUNDS = 9
WORKER_STARTS, PACE_MS = 3, 12
PEER_ROUNDS, PEER_SECONDS, PEER_CONNECTIONS = 3, 5, 8
LB_CORE, LOAD_CORE = "0", str((os.cpu_count() or 2) - 1)
ROLES = Path(__file__).parent / "lb_roles.py"
BUILD = Path(__file__).parents[2] / "build"
ROUTERS = BUILD / "bench-routers"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
)  # fmt: skip
SECRET = "sk-bench-0123456789abcdef"
POST = """
wrk.method = "POST"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"Hello, how are you? Tell me something nice."}]}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer SECRET"
wrk.headers["Accept"] = "application/json"
wrk.headers["Accept-Encoding"] = "gzip, deflate"
wrk.headers["Connection"] = "keep-alive"
wrk.headers["User-Agent"] = "OpenAI/Python 3.54.0"
wrk.headers["X-Stainless-Lang"] = "python"
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.rows: list[Row] = []
        post = POST.replace("SECRET", SECRET)
        (folder / "post.lua").write_text(post)
        (folder / "paced.lua").write_text(f"{post}function delay() return {PACE_MS} end\n")
        digest = hashlib.sha256(SECRET.encode()).hexdigest()
        (folder / "keys.yaml").write_text(f"keys: [{{name: bench, sha256: {digest}}}]")

    def start(self, core: str, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **environ}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        return process

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        for process in processes or tuple(self.started):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            self.started.remove(process)

    def nginx(self, core: str, servers: str) -> subprocess.Popen[bytes]:
        name = self.folder / f"nginx{len(self.started)}"
        name.with_suffix(".conf").write_text(
            f"worker_processes 1; daemon off; pid {name}.pid; error_log /dev/null;\n"
            "events { worker_connections 8192; }\nhttp { access_log off; keepalive_requests 100000000; "
            f"default_type application/json;\n{servers}\n}}\n"
        )
        return self.start(core, "nginx", "-c", str(name.with_suffix(".conf")))

    def replicas(self) -> list[int]:
        ports = [free_port() for _ in range(3)]
        block = "server {{ listen 127.0.0.1:{} backlog=4096; location / {{ return 200 '{}'; }} }}"
        self.nginx(LOAD_CORE, "\n".join(block.format(port, ANSWER) for port in ports))
        for port in ports:
            wait_for(port)
        return ports

    def proxy_nginx(self, ports: list[int]) -> int:
        port = free_port()
        servers = " ".join(f"server 127.0.0.1:{one};" for one in ports)
        self.nginx(
            LB_CORE,
            f"upstream u {{ least_conn; {servers} keepalive 256; keepalive_requests 100000000; }}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://u; proxy_buffering off;"
            " proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header X-Request-Id $request_id;"
            " proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } }",
        )
        wait_for(port)
        return port

    def ours(self, ports: list[int], *more: str, core: str = LB_CORE) -> tuple[int, subprocess.Popen[bytes]]:
        port = free_port()
        endpoints = [word for one in ports for word in ("--endpoint", f"http://127.0.0.1:{one}")]
        command = [sys.executable, "-m", "skyloom_lb.main", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--keys-file", str(self.folder / "keys.yaml")]
        process = self.start(core, *command, "--admin-port", "-1", *endpoints, *more)
        wait_for(port)
        return port, process

    def bare(self, ports: list[int], role: str = "bare") -> int:
        port = free_port()
        self.start(
            LB_CORE,
            sys.executable,
            str(ROLES),
            role,
            str(port),
            *(f"http://127.0.0.1:{one}" for one in ports),
        )
        wait_for(port)
        return port

    def router(self, module: str, ports: list[int]) -> int | None:
        if not (ROUTERS / module).is_dir():
            return None
        port = free_port()
        urls = [f"http://127.0.0.1:{one}" for one in ports]
        command = [
            sys.executable,
            "-m",
            f"{module}.launch_router",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        more = ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())]
        self.start(LB_CORE, *command, *more, "--worker-urls", *urls, PYTHONPATH=str(ROUTERS))
        wait_for(port, 30)
        return port

    def skyserve(self, ports: list[int]) -> int | None:
        """SkyServe's balancer; a controller of ours tells it its replicas."""
        python = BUILD / "bench-skypilot" / "bin" / "python"
        if not python.exists():
            return None
        controller, port = free_port(), free_port()
        urls = [f"http://127.0.0.1:{one}" for one in ports]
        self.start(LOAD_CORE, sys.executable, str(ROLES), "controller", str(controller), *urls)
        wait_for(controller)
        where = ["--controller-addr", f"http://127.0.0.1:{controller}", "--load-balancer-port", str(port)]
        self.start(LB_CORE, str(python), "-m", "sky.serve.load_balancer", *where, HOME=str(self.folder))
        wait_for(port, 60)
        return port

    def litellm(self, ports: list[int]) -> int | None:
        there = BUILD / "bench-litellm" / "bin"
        if not there.exists():
            return None
        port = free_port()
        models = [
            {"model_name": "m", "litellm_params": {"model": "openai/m", "api_base": f"http://127.0.0.1:{one}/v1", "api_key": "x"}}
            for one in ports
        ]  # fmt: skip
        settings = {"model_list": models, "general_settings": {"master_key": SECRET}}
        (self.folder / "litellm.yaml").write_text(json.dumps(settings))
        where = ["--config", str(self.folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
        self.start(
            LB_CORE,
            str(there / "python"),
            str(there / "litellm"),
            *where,
            HOME=str(self.folder),
            LITELLM_LOG="ERROR",
        )
        wait_for(port, 120)
        return port

    def wrk(
        self,
        port: int,
        connections: int,
        seconds: int = SECONDS,
        strict: bool = True,
        script: str = "post.lua",
    ) -> tuple[float, float, float]:
        """Requests per second, p50 and p99 in milliseconds; when `strict`, no request may fail or last two seconds."""
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}",
            "--latency",
            "-s",
            str(self.folder / script),
        ]
        text = subprocess.run(
            ["taskset", "-c", LOAD_CORE, *command, f"http://127.0.0.1:{port}/v1/chat/completions"],
            capture_output=True, text=True, timeout=seconds + 30, check=True,
        ).stdout  # fmt: skip
        if "Non-2xx" in text or (strict and "Socket errors" in text):
            raise RuntimeError(f"requests failed: {text}")
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        assert rate is not None, text
        return float(rate[1]), _milliseconds(text, "50%"), _milliseconds(text, "99%")

    def row(self, name: str, value: float, unit: str, bar: str = "") -> None:
        self.rows.append((name, value, unit, bar))


def _milliseconds(text: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def wait_for(port: int, seconds: float = 15.0) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nobody listens on {port}")


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        picks(bench)
        missing = [name for name in ("nginx", "wrk", "taskset") if shutil.which(name) is None]
        if missing:
            print(
                f"  skipped: {', '.join(missing)} not installed (apt-get install nginx-light wrk util-linux)"
            )
            return bench.rows
        try:
            throughput(bench)
            peers(bench)
            two_processes(bench)
            streams(bench)
        finally:
            bench.stop()
        return bench.rows


LEAN = "leaner aiohttp (no headers, whole bodies)"


def throughput(bench: Bench) -> None:
    replicas = bench.replicas()
    starts: dict[str, Callable[[], int | None]] = {
        "ours": lambda: bench.ours(replicas)[0],
        "bare aiohttp": lambda: bench.bare(replicas),
        LEAN: lambda: bench.bare(replicas, "lean"),
        "nginx": lambda: bench.proxy_nginx(replicas),
        "vLLM router": lambda: bench.router("vllm_router", replicas),
        "SGLang router": lambda: bench.router("sglang_router", replicas),
    }
    there: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}
    for name, start in starts.items():
        port = start()
        if port is None:
            skipped(name)
        else:
            there[name] = (port, bench.started[-1])
    rates: dict[str, list[float]] = {name: [] for name in there}
    costs: dict[str, list[float]] = {name: [] for name in there}
    calm: dict[str, list[tuple[float, float]]] = {name: [] for name in there if "aiohttp" not in name}
    direct: list[tuple[float, float]] = []
    for port, _ in there.values():
        warm(bench, port)
    for _ in range(ROUNDS):
        for name, (port, process) in there.items():
            before = cpu_seconds(process)
            rates[name].append(bench.wrk(port, 64)[0])
            costs[name].append((cpu_seconds(process) - before) / (rates[name][-1] * SECONDS) * 1e6)
        direct.append(bench.wrk(replicas[0], 16, 1)[1:])
        for name, found in calm.items():
            found.append(bench.wrk(there[name][0], 16, 1)[1:])
    bench.stop(*bench.started[1:])
    report(bench, rates)
    for name, values in costs.items():
        bench.row(f"CPU a request: {name}", statistics.median(values), "us")
    base = [statistics.median(values) for values in zip(*direct, strict=True)]
    for name, found in calm.items():
        p50, p99 = (statistics.median(column) for column in zip(*found, strict=True))
        bars = ("<= 1", "<= 4") if name == "ours" else ("", "")
        bench.row(f"added latency at 16 connections, p50: {name}", max(0.0, p50 - base[0]), "ms", bars[0])
        bench.row(f"added latency at 16 connections, p99: {name}", max(0.0, p99 - base[1]), "ms", bars[1])


def warm(bench: Bench, port: int, connections: int = 64, strict: bool = True) -> None:
    """Some open their port before they know their workers, and answer with errors until then, or not at all."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        with suppress(RuntimeError):
            if bench.wrk(port, connections, 1, strict)[0] > 0:
                return
    bench.wrk(port, connections, 1, strict)


def report(bench: Bench, rates: dict[str, list[float]]) -> None:
    rate = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in rate.items():
        bench.row(f"chat completions, 64 connections: {name}", value, "req/s")
    bars = {"bare aiohttp": ">= 3.5", LEAN: "", "nginx": ">= 0.4", "vLLM router": ">= 1", "SGLang router": ""}
    for name, bar in bars.items():
        if name in rate:
            bench.row(f"ours against {name}", paired(rates["ours"], rates[name]), "x", bar)


def peers(bench: Bench) -> None:
    """The peers' balancers in Python, with as many connections as they bear: at 64 both answer with errors now and then. They work
    on what wrk has given up after it has left: nothing else is measured before that."""
    replicas = bench.replicas()
    ours = bench.ours(replicas)[0]
    warm(bench, ours)
    for name, start in (("SkyServe's balancer", bench.skyserve), ("LiteLLM", bench.litellm)):
        port = start(replicas)
        if port is None:
            skipped(name)
            continue
        process = bench.started[-1]
        warm(bench, port, PEER_CONNECTIONS, strict=False)
        rates: dict[int, list[float]] = {ours: [], port: []}
        for _ in range(PEER_ROUNDS):
            until_idle(process)
            rates[ours].append(bench.wrk(ours, 64)[0])
            rate = bench.wrk(port, PEER_CONNECTIONS, PEER_SECONDS, strict=False)[0]
            rates[port].append(max(rate, 1 / PEER_SECONDS))
        bench.stop(process)
        bench.row(
            f"chat completions, {PEER_CONNECTIONS} connections: {name}",
            statistics.median(rates[port]),
            "req/s",
        )
        bench.row(f"ours against {name}", paired(rates[ours], rates[port]), "x", ">= 20")
    bench.stop()


def until_idle(process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        before = cpu_seconds(process)
        time.sleep(0.2)
        if cpu_seconds(process) - before < 0.02:
            return


def skipped(name: str) -> None:
    print(f"  skipped: {name} is not in build (the head of tests/perf/bench_lb.py says how)")


def paired(ours: list[float], others: list[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


def two_processes(bench: Bench) -> None:
    """Requests per second of CPU time: what a second process costs beside its own work. Both may use every core, as workers do.

    Two readings, as nothing says which is meant, each with the bar. The same load for each process: 64 clients each, that ask again after
    a pause, so that none is full. And the same 64 connections, as fast as they go: one process then has the core that the load leaves,
    two share it with the load, where there are but two cores; a single one that is kept on the load's core costs more too (`docs/lb.md`).
    Where a process's memory lies is luck that lasts as long as it does: they are started anew.
    """
    replicas = bench.replicas()
    there = len(bench.started)
    loads = {", the same load for each": (64, "paced.lua"), ", the same 64 connections": (0, "post.lua")}
    found: dict[tuple[str, int], list[float]] = {(name, workers): [] for name in loads for workers in (1, 2)}
    for _ in range(WORKER_STARTS):
        both = [bench.ours(replicas, "--workers", str(one), core=f"{LB_CORE},{LOAD_CORE}") for one in (1, 2)]
        for port, _ in both:
            warm(bench, port)
        for _ in range(ROUNDS):
            for name, (more, script) in loads.items():
                for workers, (port, process) in enumerate(both, 1):
                    connections = 64 + more * (workers - 1)
                    before = cpu_seconds(process)
                    rate = bench.wrk(port, connections, script=script)[0]
                    found[name, workers].append(rate * SECONDS / (cpu_seconds(process) - before))
        bench.stop(*bench.started[there:])
    for name in loads:
        bench.row(f"requests per CPU-second: one process{name}", statistics.median(found[name, 1]), "req")
        ratio = paired(found[name, 2], found[name, 1])
        bench.row(f"requests per CPU-second: two processes against one{name}", ratio, "x", ">= 0.95")
    bench.stop()


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    found = psutil.Process(process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (found, *found.children(recursive=True)))


def streams(bench: Bench) -> None:
    """1,000 streams of 20 chunks a second, through us and through nginx, turn and turn about."""
    source = free_port()
    bench.start(LOAD_CORE, sys.executable, str(ROLES), "stream", str(source), "600")
    wait_for(source)
    port, process = bench.ours([source])
    proxies = {"ours": port, "nginx": bench.proxy_nginx([source])}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in proxies}
    memory = 0.0
    for _ in range(STREAM_ROUNDS):
        for name, one in proxies.items():
            command = ["taskset", "-c", LOAD_CORE, sys.executable, str(ROLES), "watch", str(one), "1000", "3"]
            watcher = subprocess.Popen(command, stdout=subprocess.PIPE)
            with peak(process) as size:
                out, _ = watcher.communicate(timeout=60)
            if name == "ours":
                memory = max(memory, size())
            seen[name].append(json.loads(out))
    bench.stop()
    p99 = {name: [one["p99"] for one in values] for name, values in seen.items()}
    merged = sum(one["merged"] for one in seen["ours"]) / sum(one["events"] for one in seen["ours"])
    bench.row("1,000 SSE streams x 20/s: merged chunks", 100 * merged, "%", "<= 0")
    bench.row("1,000 SSE streams x 20/s: chunks seen a second", seen["ours"][-1]["events"] / 3, "/s")
    bench.row("1,000 SSE streams x 20/s: p99 delay", 1000 * statistics.median(p99["ours"]), "ms")
    ratio = paired(p99["ours"], p99["nginx"])
    bench.row("1,000 SSE streams x 20/s: p99 delay against nginx's", ratio, "x", "<= 2")
    bench.row("1,000 SSE streams x 20/s: memory of ours", memory, "MB", "<= 80")


@contextmanager
def peak(process: subprocess.Popen[bytes]) -> Iterator[Callable[[], float]]:
    """Resident memory at the end of the block, when all streams have run for seconds."""
    found = psutil.Process(process.pid)
    sizes: list[float] = [found.memory_info().rss / 1e6]
    yield lambda: max(sizes)
    sizes.append(found.memory_info().rss / 1e6)


def picks(bench: Bench) -> None:
    from skyloom_lb.pipeline.affinity import PrefixAffinity
    from skyloom_lb.pipeline.least import Least, by_load
    from skyloom_lb.pipeline.model import NO_FACTS, LbRequest, LiveEndpoint

    endpoints = [LiveEndpoint(f"e{number}") for number in range(1000)]
    least = Least("least_load", by_load)
    least.rebuild(endpoints)
    bench.row("least load over 1,000 endpoints, a pick", _pick(least, [NO_FACTS], endpoints), "us", "<= 10")
    prefix = PrefixAffinity(
        capacity=3_000_000
    )  # a generation holds half of them: all of a million are in the young one
    prefix.rebuild(endpoints)
    random = Random(1)
    before = psutil.Process().memory_info().rss
    prompts = 0
    while len(prefix) < 1_000_000:
        prefix.pick(LbRequest(prompt=b"%016d" % prompts * 96))
        prompts += 1
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    asked = [LbRequest(prompt=b"%016d" % random.randrange(prompts) * 96) for _ in range(10_000)]
    bench.row(
        f"prefix affinity over {len(prefix):,} prefixes, a pick",
        _pick(prefix, asked, endpoints),
        "us",
        "<= 10",
    )
    bench.row("prefix affinity, memory of its prefixes (bounded)", grown, "MB", "<= 400")


def _pick(policy: object, requests: list[object], endpoints: list[object]) -> float:
    """With the two changes that a request makes: one more in flight, one less. The quickest of the rounds (as `timeit` does):
    what else the machine did is no part of a pick."""
    times = []
    for _ in range(9):
        started = time.perf_counter()
        for number in range(10_000):
            one = policy.pick(requests[number % len(requests)])  # type: ignore[attr-defined]
            one.in_flight += 1
            policy.changed(one)  # type: ignore[attr-defined]
            one.in_flight -= 1
            policy.changed(one)  # type: ignore[attr-defined]
        times.append((time.perf_counter() - started) / 10_000)
    return min(times) * 1e6


if __name__ == "__main__":
    for name, value, unit, bar in run():
        print(f"{name:<70} {value:>12,.2f} {unit:<6} {bar}")
