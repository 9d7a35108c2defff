"""Writes `tiny-chat.gguf` from the checkpoint folder beside it.

A checkpoint is what the `transformers` library saves for a Llama model: `config.json`,
`model.safetensors`, `tokenizer.json`, `chat_template.jinja`. Matrices become float16,
norms float32.

Needs the packages `gguf` and `numpy`, which the project itself does not:

    python -m venv /tmp/gguf && /tmp/gguf/bin/pip install gguf
    /tmp/gguf/bin/python tests/data/make_tiny_gguf.py [CHECKPOINT_FOLDER [OUTPUT]]
"""

from __future__ import annotations

import json
import pathlib
import struct
import sys
from typing import Any

import gguf
import numpy as np  # type: ignore[import-not-found, unused-ignore]

HERE = pathlib.Path(__file__).parent
BYTE_ORDER_AND_TYPE = {"F16": "<f2", "F32": "<f4"}
# Name in a llama.cpp block -> name in a Hugging Face layer.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_safetensors(path: pathlib.Path) -> dict[str, Any]:
    """Read all tensors: an 8-byte length, a JSON table of that length, then raw data."""
    data = path.read_bytes()
    (table_size,) = struct.unpack_from("<Q", data)
    start = 8 + table_size
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        kind = BYTE_ORDER_AND_TYPE[entry["dtype"]]
        tensors[name] = np.frombuffer(data[start + first : start + last], kind).reshape(
            entry["shape"]
        )
    return tensors


def interleave_rotary_rows(matrix: Any, heads: int) -> Any:
    """Reorder a query or key matrix to llama.cpp's rotary layout.

    Hugging Face rotates row i of a head with row i + half; llama.cpp with its neighbour.
    """
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def add_shape(writer: Any, config: dict[str, Any]) -> None:
    """Write the sizes of the network."""
    writer.add_name("tiny-chat")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: Any, tokenizer: dict[str, Any], vocabulary_size: int) -> None:
    """Write the byte-level BPE vocabulary; ids without a token are marked unused."""
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    names = [f"<unused{index}>" for index in range(vocabulary_size)]
    kinds = [gguf.TokenType.UNUSED] * vocabulary_size
    for name, index in tokenizer["model"]["vocab"].items():
        names[index], kinds[index] = name, gguf.TokenType.NORMAL
    for name, index in special.items():
        names[index], kinds[index] = name, gguf.TokenType.CONTROL
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_eot_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|endoftext|>"])


def add_tensors(writer: Any, config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Write the weights. The output matrix is the embedding, so it is not written twice."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    named = {
        "token_embd": tensors["model.embed_tokens.weight"],
        "output_norm": tensors["model.norm.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in LAYER_TENSORS.items():
            tensor = tensors[f"model.layers.{layer}.{theirs}.weight"]
            if ours in heads:
                tensor = interleave_rotary_rows(tensor, heads[ours])
            named[f"blk.{layer}.{ours}"] = tensor
    for name, tensor in named.items():
        kind = np.float32 if tensor.ndim == 1 else np.float16
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(tensor, kind))


def main(
    checkpoint: pathlib.Path = HERE / "tiny-chat", output: pathlib.Path = HERE / "tiny-chat.gguf"
) -> None:
    """Convert one checkpoint folder into one GGUF file."""
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    if not config["tie_word_embeddings"]:
        sys.exit("this script knows only models whose output matrix is the embedding")
    writer = gguf.GGUFWriter(str(output), "llama")
    add_shape(writer, config)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    add_tokenizer(writer, tokenizer, config["vocab_size"])
    writer.add_chat_template((checkpoint / "chat_template.jinja").read_text("utf-8"))
    add_tensors(writer, config, read_safetensors(checkpoint / "model.safetensors"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sys.stdout.write(f"{output}: {output.stat().st_size} bytes\n")


if __name__ == "__main__":
    main(*(pathlib.Path(argument) for argument in sys.argv[1:3]))
