"""Drives a running `steerkit serve` and checks what comes back. Python's standard library only.

    python bench/load.py --url http://127.0.0.1:8080 --vectors a,b streams --concurrent 64 --requests 200
    python bench/load.py --url ... --vectors a,b identical --concurrent 64
    python bench/load.py --url ... --vectors a,b zero
    python bench/load.py --url ... --vectors a,b throughput --concurrent 16 --tokens 128
    python bench/load.py --url ... gaps --prompt-tokens 2000
    python bench/load.py --url ... cancels --requests 1000
    python bench/load.py --url ... overload --concurrent 2720
    python bench/load.py --url ... --pid PID memory --requests 10000

Prints one JSON object; exits with 1 when a check fails.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from urllib.parse import urlsplit

QUESTIONS = [
    "How do I store olive oil?",
    "What is a good way to learn the names of trees?",
    "Why is the sky red in the evening?",
    "Explain compound interest to a child.",
    "Write two sentences about a lighthouse.",
    "How do bees find their way home?",
    "What should I pack for a week of hiking?",
    "Describe the taste of rye bread.",
]
SCALES = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


class Failed(Exception):
    """A reply that is not what it should be."""


class Server:
    def __init__(self, url, key, vectors):
        parts = urlsplit(url)
        self.host, self.port, self.key, self.vectors = parts.hostname, parts.port, key, vectors

    async def open(self, method, path, body=None):
        """Sends a request: the reader after the reply's head, the writer, the status and the headers."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        if self.key:
            head += f"Authorization: Bearer {self.key}\r\n"
        try:
            writer.write(head.encode() + b"\r\n" + data)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            headers = {}
            while line := (await reader.readline()).strip():
                name, value = line.decode().split(": ", 1)
                headers[name.lower()] = value
        except BaseException:
            # A client that gives up hangs up.
            writer.close()
            raise
        return reader, writer, status, headers

    async def ask(self, method, path, body=None):
        reader, writer, status, headers = await self.open(method, path, body)
        try:
            if headers.get("transfer-encoding") == "chunked":
                data = b"".join([chunk async for chunk in chunks(reader)])
            else:
                data = await reader.read()
        finally:
            writer.close()
        return status, headers, data

    async def stream(self, body, on_event=lambda: None):
        """The token ids of a streamed chat; checks that the stream is whole."""
        reader, writer, status, _ = await self.open("POST", "/v1/chat/completions", {**body, "stream": True})
        try:
            if status != 200:
                raise Failed(f"status {status}")
            text, ids, reasons, done = "", [], [], False
            async for chunk in chunks(reader):
                text += chunk.decode()
                *events, text = text.split("\n\n")
                for event in events:
                    if event.startswith(":"):
                        continue
                    if done or not event.startswith("data: "):
                        raise Failed(f"unexpected event {event[:80]!r}")
                    if event == "data: [DONE]":
                        done = True
                        continue
                    data = json.loads(event[6:])
                    if "error" in data:
                        raise Failed(data["error"]["message"])
                    for choice in data["choices"]:
                        new = choice.get("token_ids", [])
                        ids += new
                        if new:
                            on_event()
                        if choice["finish_reason"]:
                            reasons.append(choice["finish_reason"])
            if not done or len(reasons) != 1 or text:
                raise Failed(f"cut: done {done}, finish reasons {reasons}")
            return ids
        finally:
            writer.close()

    def body(self, i, tokens, **more):
        vectors = []
        if self.vectors:
            name = self.vectors[i % len(self.vectors)]
            vectors = [{"name": name, "scale": SCALES[i % len(SCALES)]}]
        return {
            "messages": [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)]}],
            "steering": {"vectors": vectors},
            "max_tokens": tokens,
            "temperature": 0,
            "return_token_ids": True,
            **more,
        }

    async def load(self):
        return json.loads((await self.ask("GET", "/health"))[2])

    async def idle(self):
        began = time.perf_counter()
        while True:
            load = await self.load()
            if load["running"] == 0 and load["waiting"] == 0:
                return time.perf_counter() - began
            await asyncio.sleep(0.01)


async def chunks(reader):
    while size := int((await reader.readline()).strip() or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def pool(n, concurrent, work):
    """Runs work(0..n), so many at a time; the results, errors among them."""
    slots, results = asyncio.Semaphore(concurrent), [None] * n

    async def one(i):
        async with slots:
            try:
                results[i] = await work(i)
            except (Failed, OSError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
                results[i] = error
    await asyncio.gather(*(one(i) for i in range(n)))
    return results


def failures(results):
    return [repr(r) for r in results if isinstance(r, Exception)]


async def streams(server, args):
    began = time.perf_counter()
    results = await pool(args.requests, args.concurrent, lambda i: server.stream(server.body(i, args.tokens)))
    bad = failures(results)
    tokens = sum(len(r) for r in results if isinstance(r, list))
    seconds = time.perf_counter() - began
    return not bad, {"requests": args.requests, "failed": len(bad), "first_failures": bad[:3],
                     "tokens": tokens, "tokens_per_second": tokens / seconds, "seconds": seconds}


async def identical(server, args):
    n = args.concurrent
    together = await pool(n, n, lambda i: server.stream(server.body(i, args.tokens)))
    alone = await pool(n, 1, lambda i: server.stream(server.body(i, args.tokens)))
    same = sum(a == b and isinstance(a, list) for a, b in zip(together, alone))
    different = len({tuple(a) for a in alone if isinstance(a, list)})
    return same == n, {"streams": n, "identical": same, "different_answers": different, "failures": failures(together + alone)[:3]}


async def zero(server, args):
    same = 0
    for i in range(len(QUESTIONS)):
        plain = server.body(i, args.tokens) | {"steering": {"vectors": []}}
        null = plain | {"steering": {"vectors": [{"name": name, "scale": 0} for name in server.vectors]}}
        same += await server.stream(plain) == await server.stream(null)
    return same == len(QUESTIONS), {"questions": len(QUESTIONS), "identical": same}


async def throughput(server, args):
    """Tokens per second of all streams together while all of them are writing."""
    first, times = {}, []

    def note(i):
        now = time.perf_counter()
        first.setdefault(i, now)
        times.append(now)

    more = {"ignore_eos": True}
    results = await pool(args.concurrent, args.concurrent,
                         lambda i: server.stream(server.body(i, args.tokens, **more), lambda: note(i)))
    ends = max(first.values())
    # From the moment at which the last one began to the one at which the first one ends.
    last = sorted(times)[-args.concurrent]
    during = sum(ends <= t <= last for t in times)
    return not failures(results), {"streams": args.concurrent, "tokens_per_second": during / (last - ends),
                                   "seconds": last - ends, "failures": failures(results)[:3]}


async def gaps(server, args):
    """Gaps between the tokens of a few streams, quiet and while a long prompt is read: three quiet ones and one part of the
    prompt at most. A part is what it adds to the median gap."""
    arrivals, reading = {}, []

    def note(i):
        now = time.perf_counter()
        arrivals.setdefault(i, []).append(now)

    async def long():
        await asyncio.sleep(args.quiet)
        word = random.Random(7)
        ids = [word.randrange(1000, 40000) for _ in range(args.prompt_tokens)]
        began = time.perf_counter()
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0}
        status, _, data = await server.ask("POST", "/v1/completions", body)
        reading.extend([began, time.perf_counter()])
        if status != 200:
            raise Failed(data.decode())

    writers = [server.stream(server.body(i, args.tokens, ignore_eos=True), lambda i=i: note(i)) for i in range(args.concurrent)]
    await asyncio.gather(long(), *writers)
    quiet, busy = [], []
    for times in arrivals.values():
        for a, b in zip(times[1:], times[2:]):
            if reading[0] <= a and b <= reading[1]:
                busy.append(b - a)
            elif b < reading[0] and a > reading[0] - args.quiet / 2:
                quiet.append(b - a)
    p99 = sorted(busy)[int(0.99 * (len(busy) - 1))]
    usual, during = statistics.median(quiet), statistics.median(busy)
    limit = 3 * usual + max(during - usual, 0)
    return p99 <= limit, {"streams": args.concurrent, "prompt_tokens": args.prompt_tokens,
                  "quiet_median_ms": 1e3 * usual, "busy_median_ms": 1e3 * during,
                  "busy_p99_ms": 1e3 * p99, "limit_ms": 1e3 * limit, "busy_max_ms": 1e3 * max(busy), "gaps": len(busy),
                  "prefill_seconds": reading[1] - reading[0]}


async def cancels(server, args):
    """Clients that go at random moments."""
    dice = random.Random(1)
    moments = [dice.random() * 0.4 for _ in range(args.requests)]

    async def one(i):
        body = server.body(i, 400, stream=i % 2 == 0)
        try:
            async with asyncio.timeout(moments[i]):
                _, writer, status, _ = await server.open("POST", "/v1/chat/completions", body)
                writer.close()
                return status
        except TimeoutError:
            return 0

    results = await pool(args.requests, args.concurrent, one)
    after = await server.idle()
    alive = await server.stream(server.body(0, 8))
    odd = [r for r in results if r not in (0, 200, 429)]
    return after < 2 and not odd and len(alive) > 0, {"cancelled": args.requests, "idle_after_seconds": after, "other_replies": [repr(r) for r in odd[:3]]}


async def overload(server, args):
    """More requests than the server has places, at once."""
    async def one(i):
        status, headers, _ = await server.ask("POST", "/v1/chat/completions", server.body(i, args.tokens))
        if status == 429 and "retry-after" not in headers:
            raise Failed("429 without Retry-After")
        return status

    async def speed():
        began = time.perf_counter()
        await server.stream(server.body(0, 32, ignore_eos=True))
        return time.perf_counter() - began

    before = await speed()
    results = await pool(args.concurrent, args.concurrent, one)
    await asyncio.sleep(1)
    after = await speed()
    counts = {str(k): results.count(k) for k in (200, 429)}
    bad = failures(results)
    good = sum(counts.values()) == args.concurrent and after < 1.5 * before
    return good, {"requests": args.concurrent, "replies": counts, "failures": bad[:3],
                  "seconds_before": before, "seconds_after": after}


async def memory(server, args):
    def resident():
        with open(f"/proc/{args.pid}/status") as status:
            return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmRSS"))

    warm = args.requests // 10
    await pool(warm, args.concurrent, lambda i: server.stream(server.body(i, args.tokens)))
    before = resident()
    results = await pool(args.requests, args.concurrent, lambda i: server.stream(server.body(i, args.tokens)))
    after = resident()
    bad = failures(results)
    growth = after / before - 1
    return not bad and growth <= 0.02, {"requests": args.requests, "failed": len(bad), "rss_mb_before": before,
                                        "rss_mb_after": after, "growth": growth}


def main():
    checks = {f.__name__: f for f in (streams, identical, zero, throughput, gaps, cancels, overload, memory)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key")
    parser.add_argument("--vectors", default="", help="names, separated by commas")
    parser.add_argument("--pid", type=int)
    parser.add_argument("check", choices=checks)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--quiet", type=float, default=3.0, help="seconds before the long prompt")
    args = parser.parse_args()
    server = Server(args.url, args.key, [v for v in args.vectors.split(",") if v])
    good, found = asyncio.run(checks[args.check](server, args))
    print(json.dumps({"check": args.check, "passed": good, **found}))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
