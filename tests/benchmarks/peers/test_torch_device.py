"""The switches of PyTorch before and after 2.9, as stand-ins that behave as its sources do."""

import types
from typing import Any

import pytest

from benchmarks.peers.pytorch.device import settings, tf32_allowed


class OldSwitch:
    """``torch.backends.cuda.matmul`` and ``torch.backends.cudnn`` before 2.9."""

    def __init__(self, allowed: bool) -> None:
        self.allow_tf32 = allowed
        self.benchmark = False


def old_torch() -> Any:
    backends = types.SimpleNamespace(
        cuda=types.SimpleNamespace(matmul=OldSwitch(False)), cudnn=OldSwitch(True), __name__="torch.backends"
    )
    return types.SimpleNamespace(backends=backends)


class NewTorch:
    """PyTorch 2.9: an old switch that is read raises where its own state and the new switches disagree."""

    def __init__(self) -> None:
        self.state = {"matmul": "none", "conv": "tf32", "rnn": "tf32"}
        self.precision = "highest"
        torch = self

        class Switch:
            def __init__(self, name: str) -> None:
                object.__setattr__(self, "name", name)

            @property
            def fp32_precision(self) -> str:
                return torch.state[self.name]  # type: ignore[attr-defined]

            @fp32_precision.setter
            def fp32_precision(self, value: str) -> None:
                assert value in ("tf32", "ieee", "none")
                torch.state[self.name] = value  # type: ignore[attr-defined]

            @property
            def allow_tf32(self) -> bool:
                raise RuntimeError("a mix of the legacy and new APIs")

            @allow_tf32.setter
            def allow_tf32(self, value: bool) -> None:
                raise RuntimeError("a mix of the legacy and new APIs")

        class Cudnn(Switch):
            benchmark = False
            conv, rnn = Switch("conv"), Switch("rnn")

        self.backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=Switch("matmul")), cudnn=Cudnn("conv"))

    def get_float32_matmul_precision(self) -> str:
        if (self.state["matmul"] == "tf32") != (self.precision != "highest"):
            raise RuntimeError("a mix of the legacy and new APIs")
        return self.precision

    def set_float32_matmul_precision(self, value: str) -> None:
        self.precision = value
        self.state["matmul"] = "ieee" if value == "highest" else "tf32"


@pytest.mark.parametrize("tf32", [True, False])
def test_the_old_switches_are_set_and_put_back(tf32: bool) -> None:
    torch = old_torch()
    with settings(torch, tf32):
        assert tf32_allowed(torch) == (tf32, tf32)
        assert torch.backends.cudnn.benchmark
    assert (tf32_allowed(torch), torch.backends.cudnn.benchmark) == ((False, True), False)


@pytest.mark.parametrize("tf32", [True, False])
def test_the_new_switches_are_set_and_put_back_and_the_old_ones_left_alone(tf32: bool) -> None:
    torch: Any = NewTorch()
    with settings(torch, tf32):
        assert tf32_allowed(torch) == (tf32, tf32)
        assert set(torch.state.values()) == {"tf32" if tf32 else "ieee"}
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest"), "torch.compile reads it"
        assert torch.backends.cudnn.benchmark
    assert torch.state == {"matmul": "none", "conv": "tf32", "rnn": "tf32"}
    assert (torch.precision, torch.backends.cudnn.benchmark) == ("highest", False)


def test_switches_that_somebody_mixed_before_are_put_back() -> None:
    torch: Any = NewTorch()
    torch.state["matmul"] = "tf32"  # by the new switch alone
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with settings(torch, False):
        assert tf32_allowed(torch) == (False, False)
    assert torch.state == {"matmul": "tf32", "conv": "tf32", "rnn": "tf32"}


def test_they_are_put_back_after_an_error() -> None:
    for torch in (old_torch(), NewTorch()):
        before = tf32_allowed(torch)
        with pytest.raises(ValueError, match="inside"), settings(torch, not before[0]):
            raise ValueError("inside")
        assert tf32_allowed(torch) == before
