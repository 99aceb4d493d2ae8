"""What the gates of the CUDA kernels read out of the compiler's reports, and when they fail. Needs no compiler."""

import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

import setup
from tools.gates import analysis, arithmetic, budgets, compile, kernels, memory, occupancy, sass, thread
from tools.gates.__main__ import kernel_gates, library_gates, rounding_gate, wanted
from tools.gates.analysis import Resources
from tools.gates.budgets import Taken

pytestmark = pytest.mark.thorough
FORWARD = (
    "_ZN7snnfast4cuda48_GLOBAL__N__488b60fb_10_forward_cu_ebb0cb92_488314forward_kernelINS_5LeakyEfLi4ELb0EEEv"
    "NS_7ForwardIT_EEb"
)
NAME, THREADS = "forward<Leaky, float, 4, false>", {"forward<Leaky, float, 4, false>": 256}

PTX = f"""\
.visible .entry {FORWARD}(
	.param .align 8 .b8 {FORWARD}_param_0[192]
)
.maxntid 256, 1, 1
{{
	mul.rn.f32 	%f3, %f1, %f2;
	@%p2 add.rn.f32 	%f4, %f3, %f5;
	mad.lo.s64 	%rd3, %rd1, %rd2, %rd4;
	cvt.rn.f32.f64 	%f6, %fd1;
	div.rn.f32 	%f7, %f4, %f3;
	ret;
}}
"""

# A loop over time (.L_time) with a table of branches, a jump written as a call, and a subroutine behind the end.
SASS = f"""\
	.target	sm_90
	.section	.text.{FORWARD},"ax",@progbits
.text.{FORWARD}:
        /*0000*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;
        /*0010*/              @P0 EXIT ;
        /*0020*/                   LDG.E R4, desc[UR22][R4.64] ;
        /*0030*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
.L_time:
        /*0040*/                   LDG.E.128 R8, desc[UR22][R24.64] ;
        /*0050*/                   BRX R28 -0x60 (*"BRANCH_TARGETS .L_one,.L_two"*);
.L_one:
        /*0060*/                   FADD R32, R28, -R5 ;
.L_two:
        /*0070*/              @!P2 STG.E.128 desc[UR22][R46.64], R32 ;
        /*0080*/              @!P3 BRA `(.L_time) ;
        /*0090*/              @P1 CALL.REL.NOINC `(.L_end) ;
        /*00a0*/                   BRA.U UP3, `(.L_end) ;
.L_end:
        /*00b0*/                   STG.E desc[UR22][R46.64], R32 ;
        /*00c0*/                   EXIT ;
        .type           $__internal_0_$__cuda_sm20_div_s64,@function
$__internal_0_$__cuda_sm20_div_s64:
        /*00d0*/                   IMAD R33, R28, R31, R33 ;
        /*00e0*/                   RET.REL.NODEC R34 `({FORWARD}) ;
.L_x_1:
        /*00f0*/                   BRA `(.L_x_1);
"""


def code(text: str = SASS) -> sass.Kernel:
    (kernel,) = sass.parse(text)
    return kernel


def accesses(text: str = SASS, least: int = 16) -> memory.Accesses:
    return memory.accesses(code(text), code(text).longest_loop(), least)


def record(**changes: object) -> analysis.Measured:
    return replace(analysis.Measured(NAME, "9.0", Resources(56, 0, 0), accesses(), 400, []), **changes)


def test_a_kernel_above_its_budget_or_without_one_fails_and_one_within_it_holds() -> None:
    budget = {("a", "9.0"): Taken(56, 0, 0, 8, 0, 500)}
    assert budgets.problems({("a", "9.0"): Taken(55, 0, 0, 8, 0, 505)}, budget) == []
    above = ["registers 57, budget 56", "spill 4, budget 0", "narrow 2, budget 0", "looped 506, budget 500"]
    problems = budgets.problems({("a", "9.0"): Taken(57, 4, 0, 8, 2, 506)}, budget)
    assert problems == [f"a, 9.0: {why}" for why in above]
    problems = budgets.problems({("b", "9.0"): Taken(1, 0, 0, 0, 0, 0)}, budget)
    assert problems == ["a, 9.0: a budget for a kernel that is not there", "b, 9.0: no budget"]


def test_every_stored_budget_has_all_architectures_and_no_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = budgets.load(budgets.FILE)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert wanted() == setup.DEFAULT_ARCHITECTURES == list(occupancy.CARDS)
    assert stored.keys() == {(name, a) for name, _ in stored for a in wanted()}
    assert all((taken.spill, taken.stack) == (0, 0) for taken in stored.values())
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX 7.5")
    assert wanted() == ["7.5", "9.0"]


def test_ptx_that_rounds_otherwise_is_named() -> None:
    assert rounding_gate([PTX]).problems == []
    for instruction, why in (
        ("fma.rn.f32 	%f4, %f1, %f2, %f3;", "a fused multiply-add"),
        ("@%p1 fma.rn.f64 	%fd4, %fd1, %fd2, %fd3;", "a fused multiply-add"),
        ("mul.f32 	%f4, %f1, %f2;", "may be contracted"),
        ("sub.f64 	%fd4, %fd1, %fd2;", "may be contracted"),
        ("add.rn.ftz.f32 	%f4, %f1, %f2;", "flushes to zero"),
        ("div.full.f32 	%f4, %f1, %f2;", "approximates"),
        ("ex2.approx.f32 	%f4, %f1;", "approximates"),
    ):
        (problem,) = rounding_gate([PTX, PTX.replace("ret;", instruction)]).problems
        assert problem.startswith(f"{NAME}: PTX ")
        assert problem.endswith(why)


def test_an_adjoint_may_fuse_but_nothing_may_be_decided_by_it() -> None:
    compare = "setp.gt.f32 	%p1, %f9, %f1;"
    for instructions, decides in (
        (compare.replace("f9", "f8"), True),
        ("add.rn.f32 	%f9, %f8, %f1;\n	" + compare, True),
        ("st.shared.f32 	[%r1], %f8;\n	ld.shared.f32 	%f9, [%r1];\n	" + compare, True),
        (
            "st.shared.f64 	[%r1], %f8;\n	ld.shared.f32 	%f9, [%r1];\n	" + compare,
            False,
        ),  # sums beside steps
        (compare, False),
        ("setp.neu.f32 	%p1, %f8, %f1;", False),
        ("setp.lt.f32 	%p1, %f8, 0f7E800000;", False),
    ):
        adjoint = PTX.replace("14forward_kernel", "21backward_plain_kernel")
        fused = adjoint.replace("ret;", f"fma.rn.f32 	%f8, %f1, %f2, %f3;\n	{instructions}")
        (problems,) = arithmetic.ptx_problems(fused).values()
        assert [why.endswith("decides by what is fused or approximate") for why in problems] == [True] * decides


def test_a_fused_multiply_add_in_machine_code_of_forward_is_named_and_a_constant_is_none() -> None:
    assert arithmetic.fused(code()) == []
    for operation in ("FFMA R32, R28, R5, R6", "DFMA R8, R8, R4, R6", "HFMA2 R4, R5, R6, R7", "FFMA2 R4, R5, R6, R7"):
        text = SASS.replace("FADD R32, R28, -R5", operation)
        assert arithmetic.fused(code(text)) == [f"1 fused multiply-adds in machine code: {operation}"]
        for name, problems in (("14forward_kernel", 1), ("15backward_kernel", 0)):
            symbol, of_name = (old.replace("14forward_kernel", name) for old in (FORWARD, text))
            (found,) = analysis.records("9.0", of_name, {symbol: Resources(56, 0, 0)})
            assert len(found.roundings) == problems, found.name


def test_what_a_library_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        names = {"-xelf": ("_kernels.1.sm_75.cubin", "_kernels.2.sm_120.cubin"), "-xptx": ("_kernels.2.sm_100.ptx",)}
        for name in names.get(command[1], ()):
            (tmp_path / name).touch()
        return subprocess.CompletedProcess(command, 0, stdout=".text  9000000  64\n.nv_fatbin  10500000  128\n")

    monkeypatch.setattr(subprocess, "run", run)
    library = Path("_kernels.so")
    units, ptx = compile.taken_out("cuobjdump", library, tmp_path)
    found, size = library_gates(library, units, ptx, ["7.5", "9.0", "12.0"])
    assert (found.problems, size.problems) == (["9.0 is missing"], ["10.50 MB"])
    assert library_gates(library, units, [], ["7.5"])[0].problems == ["PTX is missing"]
    assert library_gates(library, [], [], ["7.5"])[0].absent


def test_each_gate_of_a_kernel_can_fail() -> None:
    assert not any(gate.problems for gate in kernel_gates([record()], THREADS))
    wide = ("LDG.E.128", "STG.E.128")
    for changes, why in (
        ({"roundings": ["FFMA R1, R2, R3, R4"]}, "FFMA"),
        ({"accesses": memory.Accesses((*wide, "STG.E.U16"))}, "under 16 bytes"),
        ({"accesses": memory.Accesses(wide, ("LDL.64",))}, "LDL.64"),
        ({"resources": Resources(255, 0, 228 * 1024)}, "no block fits"),
    ):
        (problem,) = [problem for gate in kernel_gates([record(**changes)], THREADS) for problem in gate.problems]
        assert problem.startswith(f"{NAME}, 9.0: ")
        assert why in problem


# Counts a number of steps in its parameters down, and leaves if there is none; what it loads decides nothing.
LOOP = f"""\
	.section	.text.{FORWARD},"ax",@progbits
.text.{FORWARD}:
        /*0000*/                   S2R R2, SR_TID.X ;
        /*0010*/                   IMAD.WIDE.U32 R2, R2, c[0x0][RZ], RZ ;
        /*0020*/                   ULDC.64 UR4, c[0x0][0x210] ;
        /*0030*/                   ISETP.EQ.U32.AND P0, PT, RZ, UR4, PT ;
        /*0040*/                   ISETP.EQ.AND.EX P0, PT, RZ, UR5, PT, P0 ;
        /*0050*/               @P0 EXIT ;
        /*0060*/                   MOV R4, UR4 ;
.L_time:
        /*0070*/                   LDG.E R8, desc[UR22][R2.64] ;
        /*0080*/                   FADD R9, R9, R8 ;
        /*0090*/                   IADD3 R4, P1, R4, -0x1, RZ ;
        /*00a0*/                   ISETP.NE.AND P2, PT, R4, RZ, PT ;
        /*00b0*/               @P2 BRA `(.L_time) ;
        /*00c0*/                   EXIT ;
"""


def test_the_instructions_of_a_launch_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Launch(NamedTuple):
        parameters: bytes
        blocks: int = 3
        threads: int = 64

    for steps, instructions in ((0, 6), (1, 7 + 5 + 1), (25, 7 + 25 * 5 + 1)):
        assert thread.issued(code(LOOP), Launch(struct.pack("<q", steps)), 5) == instructions
    by_data = LOOP.replace("ISETP.NE.AND P2, PT, R4, RZ", "FSETP.GT.AND P2, PT, R9, RZ")
    with pytest.raises(thread.UnknownError, match="@P2 BRA"):
        thread.issued(code(by_data), Launch(struct.pack("<q", 1)))
    by_parameter = LOOP.replace("ISETP.NE.AND P2, PT, R4, RZ", "FSETP.GT.AND P2, PT, R4, 1")
    leaves, stays = (struct.pack("<fi", number, 0) for number in (1.0, 1.5))
    by_parameter = by_parameter.replace("IADD3 R4, P1, R4, -0x1, RZ", "NOP")
    assert thread.issued(code(by_parameter), Launch(leaves), 5) == 7 + 5 + 1
    monkeypatch.setattr(thread, "_MOST", 100)
    with pytest.raises(thread.UnknownError, match="does not end"):
        thread.issued(code(by_parameter), Launch(stays), 5)


def test_kernels_of_a_few_steps_have_no_loop() -> None:
    few = "backward_plain<Leaky, float, 4, (Reset)0, false, (Sums)0, false, 4>"
    assert not kernels.has_loop(few)
    assert kernels.has_loop(few.replace("4>", "16>"))
    assert kernels.has_loop(NAME)
    wide = memory.Accesses(("LDG.E.128", "STG.E.128", "LDG.E.U8"))
    assert wide.problems(4)
    assert replace(wide, once=True).problems(4) == []
