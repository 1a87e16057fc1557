"""What the extension in a wheel asks of, and shows to, the dynamic linker (ELF only).

usage: python .ci/symbols.py WHEEL

Fails when it exports anything but its module's entry point, when it needs a library other than
libc, libm and libpthread, or when it has text relocations or an executable stack.
"""

from __future__ import annotations

import io
import sys
import zipfile

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

ENTRY = "PyInit__core"
# _init and _fini are what some linkers export of any library.
LINKER_MADE = {"_init", "_fini"}
LIBRARIES = ("libc.", "libm.", "libpthread.", "ld-linux", "ld-musl")
EXECUTABLE = 1


def check(name: str, data: bytes) -> list[str]:
    elf = ELFFile(io.BytesIO(data))
    faults: list[str] = []
    symbols = elf.get_section_by_name(".dynsym")
    dynamic = elf.get_section_by_name(".dynamic")
    assert isinstance(symbols, SymbolTableSection)
    assert isinstance(dynamic, DynamicSection)
    exported = {
        symbol.name
        for symbol in symbols.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    } - LINKER_MADE
    needed = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
    if exported != {ENTRY}:
        faults.append(f"exports {sorted(exported)}, not {ENTRY} alone")
    faults += [f"needs {library}" for library in needed if not library.startswith(LIBRARIES)]
    if any(tag.entry.d_tag == "DT_TEXTREL" for tag in dynamic.iter_tags()):
        faults.append("has text relocations")
    for segment in elf.iter_segments():
        if segment.header.p_type == "PT_GNU_STACK" and segment.header.p_flags & EXECUTABLE:
            faults.append("has an executable stack")
    versions = elf.get_section_by_name(".gnu.version_r")
    if isinstance(versions, GNUVerNeedSection):
        asked = sorted(aux.name for _, entries in versions.iter_versions() for aux in entries)
        print(f"{name}: symbol versions {', '.join(asked)}")
    print(f"{name}: {len(data):,} bytes, exports {sorted(exported)}, needs {needed}")
    return [f"{name}: {fault}" for fault in faults]


def main() -> int:
    faults: list[str] = []
    checked = 0
    for wheel in sys.argv[1:]:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".so"):
                    faults += check(name, archive.read(name))
                    checked += 1
    print("\n".join(faults) or f"{checked} extension(s) checked")
    return 1 if faults or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
