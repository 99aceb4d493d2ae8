"""One library fits every Python and says why it cannot be loaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnfast._core import library, ops

pytestmark = pytest.mark.thorough


@pytest.mark.needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")
def test_the_library_needs_no_symbol_of_python() -> None:
    command = ["nm", "-D", "--undefined-only", ops.extension.path]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "aoti_torch_empty_strided" in names
    assert not [name for name in names if name.startswith(("Py", "_Py"))]


def test_a_file_that_cannot_be_loaded_is_an_import_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "_kernels.so").write_text("no library")
    torch_version = re.escape(torch.__version__)
    with pytest.raises(
        ImportError, match=rf"loaded with torch {torch_version}: .*_kernels\.so: .*torch 2\.11 or newer"
    ):
        library.Library(tmp_path / "_kernels.so")


def test_a_library_without_the_functions_is_an_import_error_that_says_so() -> None:
    (other,) = Path(torch.__file__).parent.glob("lib/libc10.so")
    with pytest.raises(
        ImportError, match=r"libc10\.so was built from other sources than the Python files.*snnfast_facts"
    ):
        library.Library(other)


@pytest.mark.needs_extension
def test_a_wrong_instruction_set_after_the_import_is_an_error() -> None:
    code = (
        "import os, snnfast; os.environ['SNNFAST_ISA'] = 'mmx'\n"
        "try: snnfast.config()\nexcept RuntimeError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert "SNNFAST_ISA: 'mmx' is not available" in done.stdout, done.stderr
