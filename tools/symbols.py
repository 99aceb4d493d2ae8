"""What a library needs of others, without running it: `python -m tools.symbols LIBRARY FOLDER`.

Every symbol must be in PyTorch's libraries, which are in the folder, or come from a library of the system. Those of
PyTorch must be of its stable ABI. A library for macOS, which nothing here can run, has no other checks than this and
that of what its loader reads.
"""

import argparse
import sys
from pathlib import Path

import lief

TORCH_LIBRARIES = [lib.format(name) for name in ("torch_cpu", "c10") for lib in ("lib{}.so", "lib{}.dylib", "{}.dll")]
# How the functions of PyTorch's stable ABI begin.
STABLE = ("aoti_torch_", "torch_")
# What every Linux, macOS and Windows 10 has.
OF_SYSTEMS = {
    lief.Binary.FORMATS.ELF: ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-"),
    lief.Binary.FORMATS.MACHO: ("/usr/lib/libSystem.B.dylib",),
    lief.Binary.FORMATS.PE: ("KERNEL32.dll", "ntdll.dll", "api-ms-win-crt-"),
}


def main() -> None:
    parser = argparse.ArgumentParser("symbols", description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("folder", type=Path, help="torch/lib of the same system")
    arguments = parser.parse_args()
    for line in needed(arguments.library, arguments.folder):
        print(line)


def needed(library: Path, folder: Path) -> list[str]:
    """A line for each library that is needed; exits where a symbol is found nowhere, or is not of the stable ABI."""
    binary = read(library)
    torch = {path.name: exports(read(path)) for path in folder.iterdir() if path.name in TORCH_LIBRARIES}
    lines, missing, unstable = [], [], []
    for name, symbols in sorted(imports(binary, torch).items()):
        lines.append(f"{library.name} needs {len(symbols)} symbols of {name}")
        if Path(name).name in torch:
            missing += sorted(symbols - torch[Path(name).name])
            # On macOS an underscore precedes the name of each C function.
            unstable += sorted(symbol for symbol in symbols if not symbol.removeprefix("_").startswith(STABLE))
        elif not name.startswith(OF_SYSTEMS[binary.format]):
            missing += sorted(symbols)
    if missing:
        sys.exit("\n".join([*lines, f"{library} needs what nothing has: {', '.join(missing)}"]))
    if unstable:
        sys.exit("\n".join([*lines, f"{library} needs what PyTorch may change: {', '.join(unstable)}"]))
    return lines


def of_macos(library: Path, tag: str) -> list[str]:
    """Lines of what the loader of macOS reads; exits where that is not right for a wheel with this tag."""
    binary = read(library)
    own = next(command.name for command in binary.libraries if command.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB)
    others = sorted(command.name for command in binary.libraries if command.name != own)
    places = [command.path for command in binary.rpaths]
    runs_on = "_".join(map(str, ("macosx", *binary.build_version.minos[:2], binary.header.cpu_type.name.lower())))
    wrong = []
    if runs_on != tag:
        wrong.append(f"it is for {runs_on}, not for {tag}")
    if own != f"@rpath/{library.name}":
        wrong.append(f"its name is {own}")
    known = (*(f"@rpath/{name}" for name in TORCH_LIBRARIES), *OF_SYSTEMS[binary.format])
    wrong += [f"it loads {name}, which no other Mac has" for name in others if name not in known]
    wrong += [f"it looks for libraries in {place}" for place in places if not place.startswith("@loader_path/")]
    if not binary.has_code_signature:
        wrong.append("it has no signature, without which no Mac with an ARM processor loads it")
    if wrong:
        sys.exit("\n".join(f"{library}: {line}" for line in wrong))
    return [f"{library.name} is {own} for {runs_on}, signed; it loads {', '.join(others)}; @rpath: {', '.join(places)}"]


def read(path: Path) -> lief.Binary:
    """The symbols of a library, without what takes long to read."""
    config = lief.ELF.ParserConfig()
    config.parse_relocations = config.parse_symtab_symbols = config.parse_notes = config.parse_overlay = False
    return lief.ELF.parse(path, config) if lief.is_elf(str(path)) else lief.parse(path)


def exports(binary: lief.Binary) -> set[str]:
    if isinstance(binary, lief.PE.Binary):
        return {entry.name for entry in binary.get_export().entries}
    return {symbol.name for symbol in binary.exported_symbols}


def imports(binary: lief.Binary, torch: dict[str, set[str]]) -> dict[str, set[str]]:
    """The symbols that are needed of each library; those of no library by the name "nowhere"."""
    found: dict[str, set[str]] = {}
    if isinstance(binary, lief.PE.Binary):
        for imported in binary.imports:
            found[imported.name] = {entry.name for entry in imported.entries}
    elif isinstance(binary, lief.MachO.Binary):
        own = {symbol.name for symbol in binary.symbols if symbol.value != 0}  # weak ones are looked up by their names
        for binding in binary.bindings:
            name = binding.library.name if binding.has_library else "nowhere"
            if binding.has_symbol and not (name == "nowhere" and binding.symbol.name in own):
                found.setdefault(name, set()).add(binding.symbol.name)
    else:
        versions = {
            version.name: needed.name
            for needed in binary.symbols_version_requirement
            for version in needed.get_auxiliary_symbols()
        }
        for symbol in binary.imported_symbols:
            version = symbol.symbol_version.symbol_version_auxiliary if symbol.has_version else None
            owner = next((name for name, symbols in torch.items() if symbol.name in symbols), "nowhere")
            if version is not None:
                # Several libraries of glibc have the same versions.
                owner = "libc.so.6" if version.name.startswith("GLIBC_") else versions[version.name]
            elif owner == "nowhere" and symbol.binding == lief.ELF.Symbol.BINDING.WEAK:
                continue  # which is checked before it is used
            found.setdefault(owner, set()).add(symbol.name)
    return found


if __name__ == "__main__":
    main()
