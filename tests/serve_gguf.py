"""What a user's `evaluation.endpoint.start` does: makes a GGUF file of a Llama, and serves it with llama.cpp.

python tests/serve_gguf.py FOLDER PORT [--bos] [--end ID] [--key KEY] [--names NAME …]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, path: Path, bos: bool = False, end: int | None = None) -> None:
    """A Llama with a byte-level BPE tokenizer, saved by transformers in float32, as a GGUF file of the same numbers.

    bos: whether llama.cpp is told to begin texts with a token; end: the end token that it is told of.
    """
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    heads, width = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(gguf.TokenType.CONTROL if n in special else 1) for n in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"] if end is None else end)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(bos)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert weight.dtype == np.float32, name
        stem = name.removesuffix(".weight")
        if stem in OUTER:
            writer.add_tensor(f"{OUTER[stem]}.weight", weight)
            continue
        _, _, layer, inner = stem.split(".", 3)
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp turns neighbours, transformers halves
            weight = weight.reshape(-1, 2, width // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"blk.{layer}.{NAMES[inner]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--bos", action="store_true")
    parser.add_argument("--end", type=int)
    parser.add_argument("--key")
    parser.add_argument("--names", nargs="*", default=[])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        write_gguf(chosen.folder, Path(made, "model.gguf"), chosen.bos, chosen.end)
        options = xllamacpp.CommonParams()
        options.model.path = str(Path(made, "model.gguf"))
        options.n_parallel, options.n_ctx = 2, 2 * 512
        # By default llama.cpp rounds keys and values, and products within attention, to 16 bits.
        options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        options.hostnames, options.port, options.verbosity = ["127.0.0.1"], chosen.port, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        options.api_keys = [chosen.key] if chosen.key else []
        options.model_alias = set(chosen.names)
        server = xllamacpp.Server(options)
    print(f"{chosen.folder} is served at {server.listening_address}", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    main()
