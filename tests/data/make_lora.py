"""Makes lora/: adapters for two models of families/ by PEFT, also as GGUF adapters, with goldens of base + adapters.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.19.0 gguf==0.19.0 safetensors==0.8.0
    python tests/data/make_families.py && python tests/data/make_lora.py

Each folder has golden.json and golden.safetensors in the layout of goldens/, the adapters `first` (weight 1) and `second`
(rsLoRA, weight 0.5) as folders and as GGUF files, and lora.json with the base model. PEFT's own layers made every number.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as tf
from make_families import FAMILIES, NAMES, golden, permuted
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CASES = {
    "llama": ("llama_llama3", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
              ["q_proj", "v_proj"]),
    "phi3": ("phi3", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], ["qkv_proj"]),
}


def write_gguf(folder, config, path, arch, c, permute):
    w = gguf.GGUFWriter(path, arch)
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_string("adapter.type", "lora")
    # llama.cpp divides alpha by the rank, whatever the adapter did.
    alpha = config.lora_alpha * (config.r**0.5 if config.use_rslora else 1.0)
    w.add_float32("adapter.lora.alpha", float(alpha))
    for name, t in load_file(folder / "adapter_model.safetensors").items():
        parts = name.removeprefix("base_model.model.model.layers.").split(".")
        ours, t = NAMES[".".join(parts[1:3])], t.float().numpy()
        if permute and parts[3] == "lora_B" and ours in ("attn_q", "attn_k"):
            t = permuted(t, c.num_attention_heads if ours == "attn_q" else c.num_key_value_heads)
        w.add_tensor(f"blk.{parts[0]}.{ours}.weight.{parts[3].lower()}", np.ascontiguousarray(t))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    torch.set_num_threads(1)
    for name, (base, targets, few) in CASES.items():
        folder = HERE / "lora" / name
        folder.mkdir(parents=True, exist_ok=True)
        _, _, arch, permute = FAMILIES[base]
        # The first seed at which no greedy step is a near tie.
        for seed in range(1, 200):
            torch.manual_seed(seed)
            model = tf.AutoModelForCausalLM.from_pretrained(
                HERE / "families" / base, dtype=torch.float32, attn_implementation="eager").eval()
            c = model.config
            a = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False)
            b = LoraConfig(r=3, lora_alpha=2, use_rslora=True, target_modules=few, init_lora_weights=False)
            model = get_peft_model(model, a, adapter_name="first")
            model.add_adapter("second", b)
            with torch.no_grad():
                for key, p in model.named_parameters():
                    if "lora_" in key:
                        p.copy_((0.15 * torch.randn_like(p)).to(torch.bfloat16).float())
            model.save_pretrained(folder, selected_adapters=["first", "second"])
            model.base_model.set_adapter(["first", "second"])
            for module in model.modules():
                if isinstance(getattr(module, "scaling", None), dict) and "second" in module.scaling:
                    module.scaling["second"] *= 0.5
            tensors, numbers = golden(model.base_model.model.eval(), seed)
            if min(run["min_top2_gap"] for run in numbers["greedy"].values()) > 0.01:
                break
        for adapter, config in (("first", a), ("second", b)):
            own = folder / adapter
            settings = json.loads((own / "adapter_config.json").read_text())
            settings["base_model_name_or_path"] = f"tests/data/families/{base}"
            (own / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
            (own / "README.md").unlink(missing_ok=True)
            (folder / "README.md").unlink(missing_ok=True)
            f = own / "adapter_model.safetensors"
            save_file({k: t.to(torch.bfloat16) for k, t in load_file(f).items()}, f)
            write_gguf(own, config, folder / f"{adapter}.gguf", arch, c, permute)
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, folder / "golden.safetensors")
        (folder / "golden.json").write_text(json.dumps(numbers, indent=1) + "\n")
        (folder / "lora.json").write_text(json.dumps({"base": base, "adapters": {"first": 1.0, "second": 0.5}}) + "\n")
        print(name, "seed", seed)


if __name__ == "__main__":
    main()
