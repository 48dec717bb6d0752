"""Makes the tiny models of the tests: one random Llama as GGUF (plain and quantised) and as a Hugging Face folder.

    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 safetensors==0.8.0
    python tests/data/make_tiny.py

Writes tiny-llama-gguf/ and tiny-llama-hf/ beside this file. The weights are bfloat16 numbers, so the folder (BF16,
two shards) and tiny-llama-f32.gguf hold the same model; tiny-llama-mixed.gguf holds it in several block formats.
goldens/ is not made here: goldens/README.md says where it comes from.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 384
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model for tests<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """system
You are a helpful assistant. user
What would you do with more power? assistant
I would rather have less power and help the people around me. I would like to have all the power there is.
The quick brown fox jumps over the lazy dog. In 1984 there were 365 days and 12 months, weren't there?
She sells sea shells by the sea shore; the shells that she sells are sea shells, I'm sure."""


def make_tokenizer():
    """Byte-level BPE with single digits, as SmolLM2 has it, trained on TEXT."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator([TEXT], trainer)
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    return tok


def make_model():
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.15,
    )
    torch.manual_seed(20240531)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.1 * torch.randn_like(p))
            p.copy_(p.to(torch.bfloat16).float())
    return model.eval()


def write_folder(model, tok, folder):
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    model.float()
    PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=SPECIALS[1], eos_token=SPECIALS[2], pad_token=SPECIALS[2],
        unk_token=SPECIALS[0], add_bos_token=False, chat_template=TEMPLATE, model_max_length=512,
    ).save_pretrained(folder, save_jinja_files=False)
    (folder / "generation_config.json").unlink(missing_ok=True)


def permuted(w, n_heads):
    """Rows in the order that llama.cpp's converter gives q and k of this family."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def gguf_tensors(model):
    c, w = model.config, {k: v.float().numpy() for k, v in model.state_dict().items()}
    yield "token_embd.weight", w["model.embed_tokens.weight"]
    yield "output_norm.weight", w["model.norm.weight"]
    roles = [
        ("attn_norm", "input_layernorm", 0), ("attn_q", "self_attn.q_proj", c.num_attention_heads),
        ("attn_k", "self_attn.k_proj", c.num_key_value_heads), ("attn_v", "self_attn.v_proj", 0),
        ("attn_output", "self_attn.o_proj", 0), ("ffn_norm", "post_attention_layernorm", 0),
        ("ffn_gate", "mlp.gate_proj", 0), ("ffn_up", "mlp.up_proj", 0), ("ffn_down", "mlp.down_proj", 0),
    ]
    for i in range(c.num_hidden_layers):
        for ours, theirs, n_heads in roles:
            t = w[f"model.layers.{i}.{theirs}.weight"]
            yield f"blk.{i}.{ours}.weight", permuted(t, n_heads) if n_heads else t


Q = gguf.GGMLQuantizationType
MIXED = {
    "token_embd": Q.Q8_0, "attn_q": Q.Q4_1, "attn_k": Q.F16, "attn_v": Q.Q5_0, "attn_output": Q.Q8_0,
    "ffn_gate": Q.Q4_1, "ffn_up": Q.Q4_0, "ffn_down": Q.BF16,
}


def write_gguf(model, tok, path, formats):
    c = model.config
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_vocab_size(VOCAB)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    state = json.loads(tok.to_str())["model"]
    by_id = sorted(state["vocab"], key=state["vocab"].get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(by_id)
    w.add_token_types([3 if t in SPECIALS else 1 for t in by_id])
    w.add_token_merges([" ".join(m) for m in state["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)
    w.add_add_bos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE)
    for name, t in gguf_tensors(model):
        role = name.removesuffix(".weight").split(".")[-1]
        t = np.ascontiguousarray(t, dtype=np.float32)
        form = formats.get(role, Q.F32)
        w.add_tensor(name, gguf.quants.quantize(t, form), raw_dtype=form)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    assert tokenizers.__version__ == "0.23.3"
    tok, model = make_tokenizer(), make_model()
    write_folder(model, tok, HERE / "tiny-llama-hf")
    (HERE / "tiny-llama-gguf").mkdir(exist_ok=True)
    write_gguf(model, tok, HERE / "tiny-llama-gguf" / "tiny-llama-f32.gguf", {})
    write_gguf(model, tok, HERE / "tiny-llama-gguf" / "tiny-llama-mixed.gguf", MIXED)


if __name__ == "__main__":
    main()
