"""Counting instructions of small kernels, of which the answer is known. Needs no compiler for CUDA."""

import struct
from pathlib import Path

import pytest

from tools.gates import arithmetic, budgets, cases, cost, model, sass
from tools.gates.budgets import Spent
from tools.gates.cases import Case
from tools.gates.interpret import Run
from tools.gates.operands import Operands, split

NAME = "forward_plain<Leaky, float, 1, (Reset)0, false>"


def control(stall: int, sets: int = 7, waits: int = 0) -> int:
    """The control bits of an instruction, which sets a barrier or waits for some."""
    return stall << 41 | sets << 46 | 7 << 49 | waits << 52


def kernel(*lines: str | tuple[str, int]) -> sass.Kernel:
    """From instructions, labels and, for some instructions, control bits; a stall of one cycle is the default."""
    text, place = ".text.k:\n", 0
    for line in lines:
        words, bits = (line, control(1)) if isinstance(line, str) else line
        if words.endswith(":"):
            text += f"{words}\n"
            continue
        text += f"        /*{place:04x}*/  {words} ;  /* 0x{0:016x} */\n  /* 0x{bits:016x} */\n"
        place += 16
    (found,) = sass.parse(text)
    return found


def run(code: sass.Kernel, latency: int = 500) -> Run:
    return Run(code, {0: bytes(0x400)}, block=0, thread=3, threads=32, load_latency=latency)


LOOP = (
    "MOV R0, 0x3",
    ".L_loop:",
    "IADD3 R0, R0, -0x1, RZ",
    "ISETP.NE.AND P0, PT, R0, RZ, PT",
    "@P0 BRA `(.L_loop)",
    "EXIT",
)


def test_a_loop_of_three_rounds_issues_its_instructions_three_times() -> None:
    done = run(kernel(*LOOP))
    assert done.instructions == 1 + 3 * 3 + 1
    assert done.issued["BRA"] == 3
    assert done.unknown_branches == {}


def test_a_loop_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.gates.interpret.LIMIT", 100)
    with pytest.raises(ValueError, match="more than 100 instructions"):
        run(kernel(*LOOP[:2], "BRA `(.L_loop)"))


def test_stalls_add_up_and_a_barrier_holds_what_waits_for_a_load() -> None:
    load, use = ("LDG.E R4, desc[UR4][R2.64]", control(2, sets=0)), ("FADD R5, R4, R4", control(4, waits=1))
    done = run(kernel(("MOV R2, 0x10", control(5)), load, use, "EXIT"), latency=700)
    assert [a.at for a in done.accesses] == [5]
    assert done.time == 5 + 700 + 4 + 1


def test_loads_that_nothing_waits_for_are_in_flight_at_once() -> None:
    load = "LDG.E.128 R4, desc[UR4][R2.64]"
    assert run(kernel(load, load, load, "EXIT")).most_loads_in_flight(16) == 3
    waits = ("LDG.E.128 R4, desc[UR4][R2.64]", control(1, sets=0, waits=1))
    assert run(kernel(waits, waits, waits, "EXIT")).most_loads_in_flight(16) == 1
    assert run(kernel("LDG.E R4, desc[UR4][R2.64]", load, "EXIT")).most_loads_in_flight(16) == 1


def test_accesses_know_their_size_and_address_and_those_of_a_false_predicate_are_none() -> None:
    done = run(kernel("MOV R2, 0x40", "STG.E.EF.64 desc[UR4][R2.64+0x8], R4", "@P0 LDG.E R4, desc[UR4][R2.64]", "EXIT"))
    (store,) = done.accesses
    assert (store.store, store.size, store.address) == (True, 8, 0x48)
    assert done.issued["LDG"] == 1


def test_a_branch_on_what_memory_holds_is_counted_and_avoids_a_subroutine() -> None:
    load, compare = "LDG.E R4, desc[UR4][R2.64]", "ISETP.NE.AND P0, PT, R4, RZ, PT"
    done = run(
        kernel(load, compare, "@P0 BRA `(.L_end)", "CALL.REL.NOINC `(.L_sub)", ".L_end:", "EXIT", ".L_sub:", "NOP")
    )
    assert sum(done.unknown_branches.values()) == 1
    assert done.issued["CALL"] == 0


def test_a_table_of_branches_is_followed() -> None:
    code = kernel("MOV R4, 0x20", 'BRX R4 -0x10 (*"BRANCH_TARGETS .L_a,.L_b"*)', ".L_a:", "NOP", ".L_b:", "EXIT")
    assert run(code).issued["NOP"] == 0  # 0x20 - 0x10 behind the branch is .L_b


@pytest.mark.parametrize(
    ("before", "instruction", "register", "expected"),
    [
        ({"R2": 7}, "IMAD R0, R2, 0x3, RZ", "R0", 21),
        ({"R2": 0xFFFFFFFF}, "IMAD.WIDE R0, R2, 0x4, RZ", "R1", 0xFFFFFFFF),
        ({"R2": 0xFFFFFFFF}, "IMAD.WIDE.U32 R0, R2, 0x4, RZ", "R1", 3),
        ({"R2": 5}, "IADD3 R0, -R2, 0x7, 0x1", "R0", 3),
        ({"R2": 0x80000000}, "LEA R0, R2, 0x5, 0x1", "R0", 5),
        ({"R2": 0x80000000, "R3": 1}, "LEA.HI R0, R2, 0x5, R3, 0x1", "R0", 8),
        ({"R2": 0xFFFFFFF0}, "SHF.R.S32.HI R0, RZ, 0x4, R2", "R0", 0xFFFFFFFF),
        ({"R2": 0x30}, "SHF.R.U32.HI R0, RZ, 0x4, R2", "R0", 3),
        ({"R2": 3}, "SHF.L.U32 R0, R2, 0x4, RZ", "R0", 0x30),
        ({"R2": 0xFF, "R3": 0x0F}, "LOP3.LUT R0, R2, R3, RZ, 0xc0, !PT", "R0", 0x0F),
        ({"R2": 0x1234}, "PRMT R0, R2, 0x7710, RZ", "R0", 0x1234),
        ({"R2": 0x80}, "PRMT R0, R2, 0x8880, RZ", "R0", 0xFFFFFF80),
        ({"R2": 0xFFFFFFFF, "R3": 2}, "VIMNMX R0, R2, R3, PT", "R0", 0xFFFFFFFF),
        ({"R2": 0xFFFFFFFF, "R3": 2}, "VIMNMX.U32 R0, R2, R3, PT", "R0", 2),
        ({}, "HFMA2.MMA R0, -RZ, RZ, 1.875, 0", "R0", 0x3F800000),
        ({"R2": None}, "LOP3.LUT R0, R2, 0x0, RZ, 0xc0, !PT", "R0", 0),
        ({"R2": None}, "IADD3 R0, R2, 0x1, RZ", "R0", None),
    ],
)
def test_integers_are_computed(before: dict[str, int | None], instruction: str, register: str, expected: int) -> None:
    of = Operands({}, {})
    for name, value in before.items():
        of._set(name, value)
    opcode, operands = instruction.split(" ", 1)
    name, *modifiers = opcode.split(".")
    of.execute(name, modifiers, split(operands), opcode)
    assert of.value(register) == expected


def test_a_carry_goes_from_one_addition_to_the_next() -> None:
    of = Operands({}, {})
    of._set("R2", 0xFFFFFFFF)
    of.execute("IADD3", [], ["R0", "P1", "R2", "0x1", "RZ"], "IADD3")
    of.execute("IADD3", ["X"], ["R1", "RZ", "RZ", "RZ", "P1", "!PT"], "IADD3.X")
    assert (of.value("R0", 64), of.predicate("P1")) == (1 << 32, True)


def test_predicates_go_into_a_register_and_back() -> None:
    of = Operands({}, {})
    of.execute("ISETP", ["NE", "AND"], ["P2", "PT", "0x1", "RZ", "PT"], "ISETP.NE.AND")
    of.execute("P2R", [], ["R5", "PR", "RZ", "0x4"], "P2R")
    assert of.value("R5") == 4
    of.execute("ISETP", ["EQ", "AND"], ["P2", "PT", "0x1", "RZ", "PT"], "ISETP.EQ.AND")
    of.execute("R2P", [], ["PR", "R5", "0x4"], "R2P")
    assert of.predicate("P2") is True


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.build(tmp_path_factory.mktemp("arguments"))


def test_arguments_are_those_of_the_structs_in_the_sources(program: Path) -> None:
    first, second = cases.arguments(program, [Case(NAME, 40, 7), Case(NAME, 40, 7, stream=False)])
    assert struct.unpack_from("<iiB", first) == (0, 0, 1)  # float, subtract, delayed
    assert struct.unpack_from("<qqQ", first, 16) == (7, 40, 1 << 33)  # steps, neurons, the first tensor
    assert (first[-1], second[-1]) == (1, 0)
    backward = cases.arguments(program, [Case("backward<Synaptic, double, 1, false>", 40, 20, surrogate="sigmoid")])[0]
    assert struct.unpack_from("<iiB", backward)[0] == 1


def test_the_cost_of_a_step_is_what_more_steps_take(program: Path) -> None:
    steps, current = "c[0x0][0x220]", "c[0x0][0x230]"
    code = kernel(
        f"ULDC.64 UR4, {current}", "MOV R2, UR4", "MOV R3, UR5", f"LDC R0, {steps}",
        ".L_time:", "LDG.E R4, desc[UR6][R2.64]", ("FADD R5, R5, R4", control(4)), "IADD3 R0, R0, -0x1, RZ",
        "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA `(.L_time)", "EXIT",
    )  # fmt: skip
    found = cost.cost(program, cost.Code(code, b"", 32), Case(NAME, 1 << 20))
    assert (found.instructions, found.per_neuron_step, found.fixed, found.startup) == (5, 5, 5, 4)
    assert found.cycles == 8 + 6  # stalls, and a branch taken
    with pytest.raises(ValueError, match="no load"):
        cost.cost(program, cost.Code(kernel("EXIT"), b"", 32), Case(NAME, 1 << 20))


def test_every_name_of_a_kernel_has_a_launch_or_is_left_out() -> None:
    names = [NAME, "backward_plain<Synaptic, Half, 4, (Reset)1>", "backward<Leaky, Half, 4, true>"]
    found = cost.ordinary_cases([*names, "backward_chunked<Leaky, float, 1, false>"])
    assert [case.kernel for case in found] == names
    assert (found[1].reset, found[2].saved) == ("zero", "membrane")


def test_a_kernel_that_costs_more_than_its_budget_fails() -> None:
    budget = {"a": Spent(10.0, 200)}
    assert budgets.overspent({"a": Spent(10.04, 210)}, budget) == {}
    assert budgets.overspent({"a": Spent(10.2, 230)}, budget) == {
        "a": ["instructions 10.2, budget 10.0", "startup 230, budget 200"]
    }
    assert budgets.overspent({"b": Spent(1, 1)}, budget) == {
        "a": ["a budget for a kernel that is not there"],
        "b": ["no budget for its cost"],
    }


def test_a_prediction_is_at_least_its_largest_part_and_a_fifth_more_for_two_alike() -> None:
    shape, card = model.SHAPES[0], model.CARDS[0]
    one = model.Prediction(shape, False, NAME, card, 0.0, 0.0, 2.0)
    two = model.Prediction(shape, False, NAME, card, 2.0, 0.0, 2.0)
    assert (one.time, one.share) == (2.0, 1.0)
    assert two.time == pytest.approx(2 * 2**0.25)


def test_the_model_takes_the_kernel_that_the_launch_code_takes() -> None:
    few, many = model.Shape("few", 4096, 256), model.Shape("many", 100, 1 << 20)
    assert model.kernel_of(few, True).startswith("backward_plain_chunked<Leaky, float, 1,")
    assert model.kernel_of(many, True).startswith("backward_plain<Leaky, float, 4,")
    assert model.kernel_of(few, False).endswith("float, 1, (Reset)0, false>")
    assert model.bytes_of(many, True) == 4 * (3 * 100 + 6) << 20


ADJOINT = """\
	mul.rn.f32 	%f1, %f8, %f9;
	setp.gt.f32 	%p1, %f1, %f7;
	st.shared.f32 	[%r1], %f1;
	ld.shared.f32 	%f2, [%r1];
	fma.rn.f32 	%f3, %f2, %f2, 0f3F800000;
	setp.gt.f32 	%p2, %f3, 0f7E800000;
	rcp.approx.ftz.f32 	%f4, %f3;
	mul.rn.f32 	%f5, %f4, %f2;
	setp.neu.f32 	%p3, %f5, 0f00000000;
"""


def test_gradients_may_be_fused_but_no_decision_may_depend_on_it() -> None:
    def problems(text: str, name: str = "14backward_plain_kernel") -> list[str]:
        (found,) = arithmetic.ptx_problems(f".entry {name}(\n{text}").values()
        return found

    assert problems(ADJOINT) == []
    assert len(problems(ADJOINT, "15backward_kernel")) == 2
    for line in ("setp.gt.f32 	%p4, %f5, %f7;", "setp.lt.f32 	%p4, %f7, %f3;"):
        (problem,) = problems(ADJOINT + f"\t{line}\n")
        assert problem.endswith("decides by what is fused or approximate")
    through_memory = ADJOINT + "\tst.shared.f32 	[%r2], %f5;\n"
    assert [
        p.split()[3] for p in problems(through_memory + "\tld.shared.f32 %f6, [%r3];\n\tsetp.ge.f32 %p5, %f6, %f7;\n")
    ]
