"""Whether the head of a cluster is missed, and what that interrupts."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest

from pipeline.distributed.head import HeadWatch


def test_a_block_is_interrupted_once_the_head_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", patience=0.5)
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            _work(watch, head)
    assert watch.is_gone
    assert signal.getsignal(signal.SIGINT) is before


def _work(watch: HeadWatch, head: socket.socket) -> None:
    with watch:
        time.sleep(2.5)
        assert not watch.is_gone
        head.close()
        time.sleep(20)


def test_a_block_that_ended_is_interrupted_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", patience=0.5)
        with watch:
            pass
    time.sleep(2.5)
    assert not watch.is_gone


def test_another_thread_than_the_main_one_is_not_watched() -> None:
    gone = []

    def block() -> None:
        with HeadWatch("127.0.0.1:1", patience=0.1) as watch:
            time.sleep(2.5)
        gone.append(watch.is_gone)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert gone == [False]
