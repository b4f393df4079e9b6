"""Compile src/saturnmq/wire/proto/*.proto: descriptors for the private pool, and types for mypy (`make rewrite`)."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

PROTO = Path(__file__).parent.parent / "src" / "saturnmq" / "wire" / "proto"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
HEADER = '''"""Written by scripts/compile_protos.py from the .proto files beside it: change those."""

#: serialized FileDescriptorProtos in base64, those that others import first
FILES = {
'''


def compile_protos() -> None:
    """Write descriptors.py and one *_pb2.pyi for each .proto."""
    sources = sorted(path.name for path in PROTO.glob("*.proto"))
    with TemporaryDirectory() as directory:
        output = Path(directory) / "set"
        options = [f"-I{PROTO}", f"-I{WELL_KNOWN}", "--include_imports", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *options, f"--pyi_out={PROTO}", *sources]) != 0:
            raise SystemExit("protoc failed")
        files = FileDescriptorSet.FromString(output.read_bytes()).file
    with (PROTO / "descriptors.py").open("w") as module:
        module.write(HEADER)
        for file in files:
            lines = textwrap.wrap(base64.b64encode(file.SerializeToString()).decode(), 108)
            module.write(f'    "{file.name}": (\n')
            module.writelines(f'        "{line}"\n' for line in lines)
            module.write("    ),\n")
        module.write("}\n")
    for source in sources:
        types = PROTO / source.replace(".proto", "_pb2.pyi")
        if not types.with_suffix(".py").exists():
            types.unlink()  # served by reflection only, never spoken
            continue
        # protoc leaves type parameters out, which mypy --strict does not accept
        text = re.sub(r"_Mapping\]", "_Mapping[str, object]]", types.read_text())
        types.write_text(text)


if __name__ == "__main__":
    compile_protos()
