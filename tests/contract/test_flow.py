"""Names are found however TensorRT's objects travel; planted faults are seen, with their place."""

import textwrap

import pytest

from tests.contract import check, names
from tests.contract.bindings import ROOT
from tests.contract.flow import analyse, read_sources
from tests.contract.test_names import LIBRARIES, TABLE

CAPABILITIES = "export/capabilities.py"
ENGINE = "export/engine.py"
SOURCES = read_sources(ROOT)


def used(text: str, path: str = "export/own.py") -> dict[str, list[int]]:
    """Names of TensorRT and the lines of ``text`` that use them, with our capabilities beside it."""
    sources = {CAPABILITIES: SOURCES[CAPABILITIES], path: textwrap.dedent(text)}
    found: dict[str, list[int]] = {}
    for use in analyse(sources, TABLE.returns).uses:
        if use.site.path == path:
            found.setdefault(use.name, []).append(use.site.line)
    return {name: sorted(lines) for name, lines in found.items()}


HEAD = "from export.capabilities import TensorRT\n"
F = "def f(trt: TensorRT):\n    "
R = "trt.module.Runtime(0)"
INIT = "class C:\n    r: object\n    def __init__(self, r):\n        self.r = r\n"
FIELD = "class C:\n    r: object\n    @property\n    def p(self):\n        return self.r\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (F + "trt.module.Builder(0).create_network(1).num_layers", "INetworkDefinition.num_layers"),
        (F + "n = trt.module.Builder(0).create_network(1)\n    [n.get_input(i).y for i in ()]", "ITensor.y"),
        (F + "for n in ['A', 'B']:\n        trt.member('BuilderFlag', n)", "BuilderFlag.B"),
        (F + "trt.member('TacticSource', f'{trt}')", "TacticSource"),
        (F + f"g({R})\ndef g(r):\n    r.z", "Runtime.z"),
        (F + f"return {R}\ndef g(trt):\n    f(trt).z", "Runtime.z"),
        (F + f"a = []\n    a.append({R})\n    for i, r in enumerate(a):\n        r.z", "Runtime.z"),
        (F + f"d = {{}}\n    d[0] = {R}\n    for k, r in d.items():\n        r.z", "Runtime.z"),
        (F + f"with {R} as r:\n        getattr(r, 'z')", "Runtime.z"),
        (F + f"(a, b), c = (1, {R}), 2\n    b.z = c", "Runtime.z"),
        (INIT + F + f"C({R}).r.z", "Runtime.z"),
        (FIELD + F + f"C(r={R}).p.z", "Runtime.z"),
        (f"def f(trt: 'TensorRT | None'):\n    {R}.z", "Runtime.z"),
        ("from export.capabilities import find_tensorrt as g\n(t := g('rtx')).module.Runtime.z", "Runtime.z"),
        ("def f(context):\n    context.set_input_shape(1)", "*.set_input_shape"),
    ],
)
def test_a_name_is_followed(text: str, name: str) -> None:
    assert name in used(HEAD + text)


def test_a_literal_is_a_use_where_it_stands() -> None:
    text = (
        HEAD + "def f(trt: TensorRT):\n    flags = ['FP16']\n    for n in flags:\n        trt.member('BuilderFlag', n)"
    )
    assert used(text)["BuilderFlag.FP16"] == [3]


def faults(old: str, new: str, version: str, path: str = ENGINE) -> list[str]:
    """What the checks say of our own source after a change."""
    assert old in SOURCES[path]
    changed = {**SOURCES, path: SOURCES[path].replace(old, new)}
    return check.wrong_uses(analyse(changed, TABLE.returns), LIBRARIES[version])


def test_a_name_of_one_major_is_seen_where_the_other_lacks_it() -> None:
    old, new = "network_flags(trt)", "1 << int(trt.member('NetworkDefinitionCreationFlag', 'EXPLICIT_BATCH'))"
    assert faults(old, new, "10.16") == []
    [fault] = faults(old, new, "11.4")
    assert "NetworkDefinitionCreationFlag.EXPLICIT_BATCH" in fault
    line = next(at for at, text in enumerate(SOURCES[ENGINE].splitlines(), 1) if old in text)
    assert f"export/engine.py:{line} is not in the bindings of TensorRT 11.4" in fault
    assert "export/capabilities.py" in fault


def test_a_name_of_no_bindings_at_all_is_seen() -> None:
    changed = {**SOURCES, ENGINE: SOURCES[ENGINE].replace(".build_serialized_network(", ".build_serialised_network(")}
    library = names.Library("11.4", LIBRARIES["11.4"].names, complete=True)
    faulty = check.wrong_uses(analyse(changed, TABLE.returns), library)
    assert any("Builder.build_serialised_network" in one for one in faulty)


def test_a_condition_that_is_gone_is_seen() -> None:
    path = "export/build_steps.py"
    faulty = faults("if not trt.strongly_typed:", "if True:", "11.0", path)
    assert any("BuilderFlag.INT8" in one for one in faulty)
    assert faults("if not trt.strongly_typed:", "if True:", "10.12", path) == []


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("if trt.progress_monitor:\n        trt.module.IProgressMonitor", False),
        ("if not trt.progress_monitor:\n        return\n    trt.module.IProgressMonitor", False),
        ("x = trt.module.IProgressMonitor if trt.progress_monitor else None", False),
        ("x = trt.progress_monitor and trt.module.IProgressMonitor", False),
        ("if trt.progress_monitor:\n        g(trt)", False),
        ("if trt.strongly_typed and x:\n        g(trt)", False),
        ("if trt.strongly_typed or x:\n        g(trt)", True),
        ("if not trt.progress_monitor:\n        g(trt)", True),
        ("if not trt.progress_monitor:\n        x = 1\n    g(trt)", True),
        ("if trt.progress_monitor:\n        g(trt)\n    g(trt)", True),
    ],
)
def test_conditions_keep_a_version_away(body: str, wrong: bool) -> None:
    own = f"{HEAD}def f(trt: TensorRT, x):\n    {body}\ndef g(trt: TensorRT):\n    trt.module.IProgressMonitor\n"
    own += "" if "g(trt)" in body else "def h(trt: TensorRT):\n    if trt.progress_monitor:\n        g(trt)\n"
    result = analyse({CAPABILITIES: SOURCES[CAPABILITIES], "export/own.py": own}, TABLE.returns)
    result.asked.clear()  # so that the conditions alone decide
    result.uses = {use for use in result.uses if use.site.path == "export/own.py"}
    assert bool(check.wrong_uses(result, LIBRARIES["8.6.0"])) == wrong
    assert check.wrong_uses(result, LIBRARIES["11.4"]) == []


GRAPHS = "return hasattr(self.module, 'CudaGraphStrategy')"


@pytest.mark.parametrize(
    ("capabilities", "use", "wrong"),
    [
        (f"def graphs(self):\n        {GRAPHS}", "trt.graphs", False),
        (f"def graphs(self):\n        {GRAPHS}\n    def fast(self):\n        return self.graphs()", "trt.fast", False),
        (f"def graphs(self):\n        {GRAPHS}", "trt.targets", True),  # nobody takes the answer
        ("def graphs(self):\n        return True", "trt.graphs", True),
        ("def graphs(self):\n        return True", "hasattr(trt.module, 'CudaGraphStrategy')", True),  # not there
    ],
)
def test_a_name_is_optional_where_a_capability_asks_and_is_consulted(capabilities: str, use: str, wrong: bool) -> None:
    text = SOURCES[CAPABILITIES].replace("    def logger(self)", f"    {capabilities}\n\n    def logger(self)")
    own = f"{HEAD}def f(trt: TensorRT):\n    return {use}\ndef g(trt: TensorRT):\n    trt.module.CudaGraphStrategy\n"
    result = analyse({CAPABILITIES: text, "export/own.py": own}, TABLE.returns)
    assert bool(check.wrong_uses(result, LIBRARIES["11.4"])) == wrong


def test_a_capability_that_nobody_consults_any_more_is_seen() -> None:
    faulty = faults("if trt.progress_monitor else None", "if True else None", "8.6.0")
    assert any("IBuilderConfig.progress_monitor used in export/engine.py" in one for one in faulty)
    assert faults("if trt.progress_monitor else None", "if True else None", "10.12") == []


def test_what_came_with_10_1_is_seen_in_10_0() -> None:
    path, old = "pipeline/runners/session.py", "trt.memory_with_size"
    assert old in SOURCES[path]
    changed = {**SOURCES, path: SOURCES[path].replace(old, "trt.memory_for_shapes")}
    result = analyse(changed, TABLE.returns)
    [fault] = check.wrong_uses(result, LIBRARIES["10.0"])
    assert "IExecutionContext.set_device_memory used in pipeline/runners/session.py" in fault
    assert check.wrong_uses(result, LIBRARIES["10.1"]) == []


def test_a_capability_that_lies_is_seen() -> None:
    wrong = names.Library("11.0", {**LIBRARIES["11.0"].names, "BuilderFlag.STRIP_PLAN": False})
    [fault] = check.wrong_capabilities(wrong)
    assert "11.0 with strips_weights" in fault
    assert "no BuilderFlag.STRIP_PLAN" in fault
    [fault] = check.wrong_answers("11.0", {"strongly_typed": False, "new": True}, ["strongly_typed"])
    assert "trt.strongly_typed to be True" in fault
    assert "no row" in check.wrong_answers("11.0", {"new": True}, ["new"])[0]
