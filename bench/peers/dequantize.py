"""Writes a GGUF model of the Llama family as a Hugging Face folder in f32, for the PyTorch peers.

    python dequantize.py MODEL.gguf OUT_DIR

Needs torch, transformers, gguf and accelerate.
"""
import os
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

source, out = sys.argv[1:3]
folder, file = os.path.split(source)
quantised = AutoModelForCausalLM.from_pretrained(folder or ".", gguf_file=file, dtype="float32")
config = quantised.config
# transformers refuses to save a model that was read from GGUF; its weights are plain f32 by now.
if hasattr(config, "quantization_config"):
    del config.quantization_config
model = LlamaForCausalLM(config)
model.load_state_dict({name: w.float() for name, w in quantised.state_dict().items()})
model.save_pretrained(out)
AutoTokenizer.from_pretrained(folder or ".", gguf_file=file).save_pretrained(out)
print(out)
