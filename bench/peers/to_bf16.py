"""Writes a GGUF file again with its matrices in BF16 and everything else as it is: what llama.cpp's prefill is fastest on.

    python to_bf16.py MODEL.gguf MODEL-BF16.gguf        (needs the package gguf)
"""
import sys

import gguf
import numpy as np

source, target = sys.argv[1:]
reader = gguf.GGUFReader(source)
arch = reader.fields["general.architecture"].contents()
writer = gguf.GGUFWriter(target, arch)
for field in reader.fields.values():
    if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
        continue
    kind = field.types[0]
    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents(), kind, sub)
writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
for tensor in reader.tensors:
    numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    numbers = numbers.reshape([int(n) for n in reversed(tensor.shape)])
    if numbers.ndim == 1:
        writer.add_tensor(tensor.name, numbers)
    else:
        bf16 = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(tensor.name, bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
