"""What the gates of the CUDA kernels read out of the compiler's reports, and when they fail. Needs no compiler."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import setup
from tools.gates import analysis, arithmetic, budgets, compile, cost, kernels, memory, occupancy, sass
from tools.gates.__main__ import budget_gates, kernel_gates, rounding_gate, wanted
from tools.gates.budgets import Taken
from tools.gates.cubin import Resources
from tools.gates.report import Gate, show, table

FORWARD = (
    "_ZN7snnfast4cuda48_GLOBAL__N__488b60fb_10_forward_cu_ebb0cb92_488314forward_kernelINS_5LeakyEfLi4ELb0EEEv"
    "NS_7ForwardIT_EEb"
)
HALF = (
    "_ZN7snnfast4cuda49_GLOBAL__N__0d6fb10e_11_backward_cu_b56fc707_553715backward_kernelINS_8SynapticE"
    "NS0_8BFloat16ELi8ELb0EEEvNS_8BackwardIT_EEb"
)

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

# A loop over groups of neurons (.L_grid) around one over time (.L_time), with a table of branches, a jump written as a
# call, and a subroutine behind the end.
SASS = f"""\
	.target	sm_90
	.section	.text.{FORWARD},"ax",@progbits
.text.{FORWARD}:
        /*0000*/                   HFMA2.MMA R3, -RZ, RZ, 0, 0 ;
        /*0010*/              @P0 EXIT ;
.L_grid:
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
        /*00a0*/                   BRA.U UP3, `(.L_grid) ;
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


def record(**changes: object) -> analysis.Measured:
    whole = analysis.Measured(
        "forward<Leaky, float, 4, false>", "9.0", Resources(56, 0, 0, 256), memory.Accesses(4, 9), [], share=0.5
    )
    return replace(whole, **changes)


def test_names_are_those_of_the_source() -> None:
    found = kernels.names([FORWARD, HALF])
    assert list(found.values()) == ["forward<Leaky, float, 4, false>", "backward<Synaptic, BFloat16, 8, false>"]
    assert [kernels.width(name) for name in found.values()] == [4, 8]
    assert kernels.names(["_ZN7snnfast4cuda12_GLOBAL__N_112probe_kernelEv"]) == {}  # of no neuron


def test_a_kernel_that_does_not_tell_its_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="a number of neurons"):
        kernels.width("forward<Leaky, float>")


def test_a_kernel_above_its_budget_or_without_one_fails_and_one_within_it_holds() -> None:
    budget = {"a": {"9.0": Taken(56, 0, 0, 8, 0)}, "gone": {"9.0": Taken(1, 0, 0, 0, 0)}}
    assert budgets.problems({"a": {"9.0": Taken(55, 0, 0, 8, 0)}, "gone": budget["gone"]}, budget) == {}
    assert budgets.problems({"a": {"9.0": Taken(57, 4, 0, 8, 2)}, "gone": budget["gone"]}, budget) == {
        "a": ["9.0: registers 57, budget 56", "9.0: spill 4, budget 0", "9.0: narrow 2, budget 0"]
    }
    assert budgets.problems({"a": {"8.0": Taken(1, 0, 0, 0, 0)}, "b": {"9.0": Taken(1, 0, 0, 0, 0)}}, budget) == {
        "a": ["no budget for 8.0", "not there for 9.0"],
        "b": ["no budget for 9.0"],
        "gone": ["a budget for a kernel that is not there"],
    }


@pytest.mark.parametrize(("code", "said"), [("exit 0", ""), ("kill -9 $$", "exit code -9"), ("exit 1", "exit code 1")])
def test_a_compiler_that_fails_without_a_word_is_a_complaint(code: str, said: str, tmp_path: Path) -> None:
    compiler = tmp_path / "clang++"
    compiler.write_text(f"#!/bin/sh\n{code}\n")
    compiler.chmod(0o755)
    complaints = compile.clang_complaints(str(compiler), tmp_path, tmp_path)
    assert complaints.count(said) == len(setup.cuda_sources()) if said else complaints == ""


def test_budgets_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = {"b": {"8.0": Taken(1, 2, 3, 4, 0)}, "a": {"8.0": Taken(5, 0, 0, 0, 0), "9.0": Taken(6, 0, 0, 0, 0)}}
    costs = {"a": budgets.Spent(9.8, 170)}
    budgets.save("13.0.88", written, costs, tmp_path / "budgets.json")
    assert budgets.load(tmp_path / "budgets.json") == ("13.0.88", written, costs)


def test_the_architectures_to_look_at_are_those_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert wanted() == setup.DEFAULT_ARCHITECTURES
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX 7.5")
    assert wanted() == ["7.5", "9.0"]


def test_a_budget_for_an_architecture_that_is_not_looked_at_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "budgets.json"
    monkeypatch.setattr(budgets.load, "__defaults__", (file,))
    taken = record().taken
    budgets.save("13.0.88", {record().name: {"8.0": taken, "9.0": taken}}, {}, file)
    assert not budget_gates("13.0.88", ["9.0"], [record()], {}, update=False)[0].problems
    assert budget_gates("13.0.88", ["8.0", "9.0"], [record()], {}, update=False)[0].problems


def test_every_stored_budget_has_all_architectures_and_no_spill() -> None:
    _, stored, _ = budgets.load()
    assert stored
    for per in stored.values():
        assert list(per) == setup.DEFAULT_ARCHITECTURES
        assert all((taken.spill, taken.stack) == (0, 0) for taken in per.values())


def test_update_makes_the_budget_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "budgets.json"
    monkeypatch.setattr(budgets.save, "__defaults__", (file,))
    monkeypatch.setattr(budgets.load, "__defaults__", (file,))
    budgets.save("13.0.88", {record().name: {"9.0": Taken(1, 0, 0, 0, 0)}}, {record().name: budgets.Spent(1, 1)})
    costs = {record().name: cost.Cost(128, 4, 40, 100, 120, 200, 8, 0)}
    assert all(gate.problems for gate in budget_gates("13.0.88", ["9.0"], [record()], costs, update=False))
    assert not any(gate.problems for gate in budget_gates("13.0.88", ["9.0"], [record()], costs, update=True))
    assert all(
        "of nvcc 13.0.88" in gate.name for gate in budget_gates("13.1.1", ["9.0"], [record()], costs, update=False)
    )


def test_ptx_of_separately_rounded_operations_holds() -> None:
    assert arithmetic.ptx_problems(PTX) == {FORWARD: []}


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("fma.rn.f32 	%f4, %f1, %f2, %f3;", "a fused multiply-add"),
        ("@%p1 fma.rn.f64 	%fd4, %fd1, %fd2, %fd3;", "a fused multiply-add"),
        ("mul.f32 	%f4, %f1, %f2;", "may be contracted"),
        ("sub.f64 	%fd4, %fd1, %fd2;", "may be contracted"),
        ("add.rn.ftz.f32 	%f4, %f1, %f2;", "flushes to zero"),
        ("div.full.f32 	%f4, %f1, %f2;", "approximates"),
        ("ex2.approx.f32 	%f4, %f1;", "approximates"),
    ],
)
def test_ptx_that_rounds_otherwise_is_named(instruction: str, why: str) -> None:
    (problems,) = arithmetic.ptx_problems(PTX.replace("ret;", instruction)).values()
    assert len(problems) == 1
    assert problems[0].endswith(why)


def test_a_fused_multiply_add_in_machine_code_is_named_and_a_constant_is_none() -> None:
    assert arithmetic.fused(code()) == []
    for operation in ("FFMA R32, R28, R5, R6", "DFMA R8, R8, R4, R6", "HFMA2 R4, R5, R6, R7", "FFMA2 R4, R5, R6, R7"):
        (problem,) = arithmetic.fused(code(SASS.replace("FADD R32, R28, -R5", operation)))
        assert problem == f"1 fused multiply-adds in machine code: {operation}"


def test_instructions_lie_in_as_many_loops_as_the_branches_make() -> None:
    kernel = code()
    depths = {i.opcode: d for i, d in zip(kernel.instructions, kernel.depths(), strict=True)}
    assert (depths["HFMA2.MMA"], depths["LDG.E"], depths["LDG.E.128"], depths["FADD"]) == (0, 1, 2, 2)
    assert (depths["STG.E.128"], depths["BRA.U"], depths["STG.E"], depths["IMAD"]) == (2, 1, 0, 0)


def test_a_table_of_branches_without_targets_is_an_error() -> None:
    with pytest.raises(ValueError, match="no targets of BRX"):
        code(SASS.replace('(*"BRANCH_TARGETS .L_one,.L_two"*)', "")).depths()


def test_accesses_count_in_the_loop_over_time_only() -> None:
    found = memory.accesses(code())
    assert found == memory.Accesses(loads=1, stores=1)
    assert found.problems(4) == []


def test_narrow_accesses_in_the_loop_over_time_are_named() -> None:
    found = memory.accesses(code(SASS.replace("STG.E.128 ", "STG.E.U16 ")))
    assert "accesses under 16 bytes in the loop over time: 1 STG.E.U16" in found.problems(4)
    generic = memory.accesses(code(SASS.replace("STG.E.128 ", "ST.E ")))
    assert "accesses under 16 bytes in the loop over time: 1 ST.E" in generic.problems(8)
    assert "no stores of 16 bytes in a loop over time" in generic.problems(8)


def test_what_a_thread_keeps_of_its_neurons_may_be_narrow_and_counts_against_the_budget() -> None:
    kept = record(accesses=memory.Accesses(4, 12, narrow=("STG.E.64", "STG.E", "LDG.E.64")))
    assert kept.memory_problems == []  # 2 and 1 bytes for each of 4 neurons
    assert kept.taken.narrow == 3
    assert record(name="forward<Leaky, double, 2, false>", accesses=kept.accesses).memory_problems == [
        "accesses under 16 bytes in the loop over time: 1 LDG.E.64, 1 STG.E.64"
    ]


def test_elements_of_a_thread_that_are_less_than_16_bytes_are_taken_at_once() -> None:
    assert kernels.access("forward<Leaky, float, 4, false>") == kernels.access("forward<Leaky, Half, 8, false>") == 16
    assert kernels.access("backward<Leaky, BFloat16, 4, true>") == 8
    eight = SASS.replace("LDG.E.128 ", "LDG.E.64 ").replace("STG.E.128 ", "STG.E.EF.64 ")
    assert memory.accesses(code(eight), 8).problems(4) == []
    four = memory.accesses(code(eight.replace("LDG.E.64 R8", "LDG.E R8")), 8)
    assert "no loads of 8 bytes in a loop over time" in four.problems(8)
    assert "accesses under 8 bytes in the loop over time: 1 LDG.E" in four.problems(8)


def test_a_loop_over_time_without_loads_is_no_loop_over_time() -> None:
    found = memory.accesses(code(SASS.replace("@!P3 BRA `(.L_time)", "NOP")))
    assert found.problems(4) == [
        "no loads of 16 bytes in a loop over time",
        "no stores of 16 bytes in a loop over time",
    ]


def test_the_loop_over_time_of_a_plain_kernel_lies_in_no_other() -> None:
    assert [kernels.time_loop(name) for name in ("forward<Leaky, float, 4>", "forward_plain<Leaky, float, 4>")] == [
        2,
        1,
    ]
    assert memory.accesses(code(), time_loop=1).loads == 2


def test_local_memory_is_found_anywhere_and_its_bytes_count_as_spilled() -> None:
    found = memory.accesses(code(SASS.replace("IMAD R33, R28, R31, R33", "LDL.64 R33, [R1]")))
    assert (found.local, found.spilled) == (1, 8)
    assert record(accesses=found).taken.spill == 8


def test_records_join_the_two_reports() -> None:
    taken = {FORWARD: Resources(56, 0, 0, 256)}
    (found,) = analysis.records("9.0", SASS, taken, {FORWARD: b"a table"})
    assert found == record(accesses=memory.Accesses(1, 1), share=0, code=cost.Code(code(), b"a table", 256))
    assert found.vector
    with pytest.raises(ValueError, match="different kernels"):
        analysis.records("9.0", SASS, {**taken, HALF: taken[FORWARD]}, {})


def test_multiply_adds_of_machine_code_count_against_forward_kernels_only() -> None:
    fused = SASS.replace("FADD R32, R28, -R5", "FFMA R32, R28, R5, R6")
    for name, problems in (("14forward_kernel", 1), ("15backward_kernel", 0)):
        symbol, text = (old.replace("14forward_kernel", name) for old in (FORWARD, fused))
        (found,) = analysis.records("9.0", text, {symbol: Resources(56, 0, 0, 256)}, {})
        assert len(found.roundings) == problems, found.name


def test_what_the_ptx_rounds_otherwise_fails_by_the_name_of_the_kernel() -> None:
    assert rounding_gate([PTX]).problems == []
    (problem,) = rounding_gate([PTX, PTX.replace("ret;", "mul.f32 	%f4, %f1, %f2;")]).problems
    assert problem.startswith("forward<Leaky, float, 4, false>: PTX mul.f32: ")


def test_a_library_older_than_a_source_is_not_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    library, source = tmp_path / "_kernels.so", tmp_path / "csrc/cuda/forward.cu"
    assert not compile.is_current(library)
    source.parent.mkdir(parents=True)
    for time, path in enumerate((tmp_path / "setup.py", source, library)):
        path.touch()
        os.utime(path, (time, time))
    assert compile.is_current(library)
    os.utime(source, (9, 9))
    assert not compile.is_current(library)


def test_machine_code_and_ptx_are_taken_out_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cuobjdump(command: list[str], cwd: Path, **options: object) -> None:
        names = {"-xelf": ("_kernels.1.sm_75.cubin", "_kernels.2.sm_120.cubin"), "-xptx": ("_kernels.2.sm_120.ptx",)}
        for name in names[command[1]]:
            (cwd / name).write_text("text")

    monkeypatch.setattr(subprocess, "run", cuobjdump)
    units, ptx = compile.taken_out("cuobjdump", Path("_kernels.so"), tmp_path)
    assert [unit.architecture for unit in units] == ["7.5", "12.0"]
    assert ptx == ["text"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"roundings": ["FFMA R1, R2, R3, R4"]}, "FFMA"),
        ({"accesses": memory.Accesses(4, 9, narrow=("STG.E.U16",))}, "under 16 bytes"),
        ({"accesses": memory.Accesses(4, 9, local=3)}, "3 accesses to local memory"),
        ({"share": 0.0}, "no block fits"),
    ],
)
def test_each_gate_of_a_kernel_can_fail(changes: dict[str, object], why: str) -> None:
    assert not any(gate.problems for gate in kernel_gates([record()]))
    (problem,) = [problem for gate in kernel_gates([record(**changes)]) for problem in gate.problems]
    assert problem.startswith("forward<Leaky, float, 4, false>, 9.0: ")
    assert why in problem


def test_kernels_of_one_neuron_may_take_their_elements_one_by_one() -> None:
    one = record(name="forward<Leaky, float, 1, false>", accesses=memory.Accesses(4, 9, narrow=("STG.E",)))
    assert not any(gate.problems for gate in kernel_gates([one]))


def test_one_failing_gate_fails_and_an_absent_tool_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    holds, absent = Gate("one", []), Gate("two", [], "not installed: apt-get install clang-19")
    assert show([holds, absent], [record()], {"9.0": "H100"})
    printed = capsys.readouterr().out
    assert "one: holds" in printed
    assert "two: not installed" in printed
    assert not show([holds, Gate("three", ["this one"])], [], {})
    assert "three: FAILS, 1 times\n    this one" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_kernel_and_a_column_for_each_card() -> None:
    heading, row = table([record()], {"8.0": "A100", "9.0": "H100"})
    cells = dict(zip(heading, row, strict=True))
    assert (cells["A100 8.0"], cells["H100 9.0"]) == ("-", "56  50%")
    assert (cells["kernel"], cells["block"], cells["loads"], cells["narrow"]) == (
        record().name,
        "256",
        "4",
        "0",
    )


def test_every_architecture_of_the_build_has_a_card() -> None:
    assert [card.architecture for card in occupancy.CARDS] == setup.DEFAULT_ARCHITECTURES


def test_the_calculator_knows_what_limits_a_card(tmp_path: Path) -> None:
    toolkit = setup.cuda_home()
    if toolkit is None:
        pytest.skip("needs the headers of the CUDA toolkit")
    program = occupancy.build(toolkit, tmp_path)
    h100 = next(card for card in occupancy.CARDS if card.name == "H100")
    # 256 threads of 40 registers: 6 blocks of them in 65536; 33 KiB: 6 in 228 KiB; else 2048 threads.
    blocks = [occupancy.Block(256, 40, 0), occupancy.Block(64, 32, 33 * 1024), occupancy.Block(256, 32, 0)]
    assert occupancy.blocks(program, h100, blocks) == [6, 6, 8]
    t4 = next(card for card in occupancy.CARDS if card.name == "T4")
    # 4 of 256 threads are all that it has; of 32 KiB, two fit, since the driver keeps nothing there.
    assert occupancy.blocks(program, t4, [occupancy.Block(256, 40, 0), occupancy.Block(64, 32, 32 * 1024)]) == [4, 2]


def test_what_the_extension_contains_is_read_from_its_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "ELF file    1: _kernels.1.sm_80.cubin\nPTX file    1: _kernels.1.sm_120.ptx\n"
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, stdout=listing))
    assert compile.shipped("cuobjdump", Path("_kernels.so")) == ["sm_80.cubin", "sm_120.ptx"]
