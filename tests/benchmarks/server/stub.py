"""A small server of the same routes that makes planted mistakes, in a thread or as ``python -m …stub FAULTS``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import struct
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CLASSES = ("red", "green", "blue", "none")
BY = {"file": "export/model.onnx", "backend": "onnxruntime", "precision": "fp32", "verdict": "pass"}


@dataclass
class Stub:
    """The faults are planted in the answers to pictures behind the first ``honest`` ones; 0 means never.

    Attributes:
        honest: number of pictures that are answered without any fault.
        wrong_every: the answer is that of another picture.
        shift_every: its probabilities are a little wrong.
        drop_every: the connection is closed without an answer.
        hang_every: there is never an answer.
        refuse_every: status 503, and the same request is answered when it comes again.
        fail_every: status 500.
        leak: bytes that are kept with every answer.
        seconds: that an answer takes.
        exit: status at SIGTERM.
        retry_after: header of a refusal.
        classes: names of the classes.
    """

    honest: int = 0
    wrong_every: int = 0
    shift_every: int = 0
    drop_every: int = 0
    hang_every: int = 0
    refuse_every: int = 0
    fail_every: int = 0
    leak: int = 0
    seconds: float = 0.0
    exit: int = 0
    retry_after: str = "0"
    classes: Sequence[str] = CLASSES
    asked: int = 0
    together: int = 0
    most_together: int = 0
    kept: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.together += 1
                self.most_together = max(self.most_together, self.together)
                if self.seconds:
                    await asyncio.sleep(self.seconds)
                self.together -= 1
                answer = self.answer(first.split(" ")[1], headers, body)
                if answer is None:
                    break
                if answer == b"":
                    await asyncio.sleep(60)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> bytes | None:
        if path == "/metrics":
            name, asked = "classifier_batch_images", self.asked
            text = f"# TYPE {name} histogram\n{name}_sum {3 * asked}.0\n{name}_count {asked}.0\n"
            return response(200, text.encode())
        self.asked += 1
        at = self.asked - self.honest

        def is_due(every: int) -> bool:
            return at > 0 and every > 0 and at % every == 0

        if self.leak:
            self.kept.append(b"x" * self.leak)
        if is_due(self.drop_every):
            return None
        if is_due(self.hang_every):
            return b""
        if is_due(self.refuse_every):
            return response(503, b'{"error": "busy", "status": "busy"}', {"Retry-After": self.retry_after})
        if is_due(self.fail_every):
            return response(500, b'{"error": "a bug", "status": "internal"}')
        file = body
        length = int(headers.get("inference-header-content-length", 0))
        if length:
            file = body[length:]
            if "_files/" in path:
                assert struct.unpack("<I", file[:4])[0] == len(file) - 4
                file = file[4:]
        values = probabilities(file + b"!" if is_due(self.wrong_every) else file, len(self.classes))
        if is_due(self.shift_every):
            values = values + np.float32(2e-4)
        return self.tensors(values) if length else self.best_classes(values)

    def tensors(self, values: np.ndarray) -> bytes:
        data = values.astype("<f4").tobytes()
        output = {"name": "probabilities", "datatype": "FP32", "shape": [1, len(values)]}
        head = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": len(data)}}]}).encode()
        return response(200, head + data, {"Inference-Header-Content-Length": str(len(head))})

    def best_classes(self, values: np.ndarray) -> bytes:
        rows = [{"class": self.classes[place], "probability": float(values[place])} for place in np.argsort(-values)]
        said = {"classes": rows, "milliseconds": {"decode": 1.0, "total": 2.0}, "answered_by": BY}
        return response(200, json.dumps(said).encode())


def probabilities(file: bytes, classes: int = len(CLASSES)) -> np.ndarray:
    """Some that follow from the bytes of a picture, or of its pixels."""
    drawn = np.frombuffer(hashlib.sha256(file).digest()[:classes], np.uint8).astype(np.float32) + 1
    return drawn / drawn.sum()


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def running(stub: Stub) -> Iterator[int]:
    """Serve in a thread, and give the port."""
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Server:
        return await asyncio.start_server(stub.serve, "127.0.0.1", 0)

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _main(stub: Stub) -> None:
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sys.stderr.write(f"ready: http://127.0.0.1:{server.sockets[0].getsockname()[1]}/\n")
    sys.stderr.flush()
    await stopped.wait()


def command(**faults: Any) -> list[str]:
    """The command of a server of its own."""
    return [sys.executable, "-m", "tests.benchmarks.server.stub", json.dumps(faults)]


if __name__ == "__main__":
    planted = Stub(**json.loads(sys.argv[1]))
    asyncio.run(_main(planted))
    raise SystemExit(planted.exit)
