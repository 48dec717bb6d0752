"""Writes another quantisation of a GGUF model: every block-quantised matrix in one format, all else as it is.

    pip install gguf==0.19.0
    python bench/peers/requantize.py SmolLM2-135M-Instruct.Q4_1.gguf Q4_0 SmolLM2-135M-Instruct.Q4_0.gguf

What the first quantisation lost stays lost: the new file is what a vector's transfer can be tried on, no better model.
"""

import sys

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType


def main(source, kind, target):
    kind = Q[kind]
    reader = gguf.GGUFReader(source)
    fields = reader.fields
    arch = fields["general.architecture"].contents()
    w = gguf.GGUFWriter(target, arch)
    for name, field in fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        main, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        w.add_key_value(name, field.contents(), main, sub_type=sub)
    plain = {Q.F32, Q.F16, Q.BF16}
    for t in reader.tensors:
        data, to = t.data, t.tensor_type
        if to not in plain:
            shape = tuple(int(n) for n in reversed(t.shape))
            values = gguf.quants.dequantize(t.data, to).reshape(shape)
            data, to = gguf.quants.quantize(values.astype(np.float32), kind), kind
        w.add_tensor(t.name, data, raw_dtype=to)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main(*sys.argv[1:])
